// SPDX-License-Identifier: Apache-2.0

//go:build faults

package faults

import (
	"syscall"
	"testing"
)

// Goal: no cut of the network, one way or both, alone or with something else, is an
// error or a wrong byte for who uses the volume. Method: as TestFaults.
func TestCuts(t *testing.T) {
	suffer(t, []fault{
		{name: "server is cut off", run: serverCut},
		{name: "nothing that a server sends arrives", run: serverMute},
		{name: "nothing that is sent to a server arrives", run: serverDeaf},
		{name: "requests of the client do not reach one server", run: requestsLost},
		{name: "answers of one server do not reach the client", run: answersLost},
		{name: "server does not reach mdm", run: reportsLost, isLong: true},
		{name: "two servers lose each other while one catches up", run: peersLost},
		{name: "mdm is cut off while a server loses power", run: powerLossWithoutNetwork},
		{name: "server is cut off, another one stands still", run: cutAndStill},
		{name: "server is cut off, its neighbour's disk hangs", run: cutAndHung, isLong: true},
		{name: "client is cut off and comes back", run: clientCut},
		{name: "client is killed while a server is cut off", run: clientKilledInCut},
		{name: "old client is cut off and comes back", run: oldClientCut},
	})
}

func serverCut(l *load, who string) {
	l.c.net.cut(who)
	l.during(300)
	l.c.net.heal(who)
}

func serverMute(l *load, who string) {
	l.c.net.mute(who)
	l.during(300)
	l.c.net.unmute(who)
}

func serverDeaf(l *load, who string) {
	l.c.net.deafen(who)
	l.during(300)
	l.c.net.undeaf(who)
}

// oneWay loses what one node sends to another.
func (l *load) oneWay(from, to string) {
	l.c.net.lose(from, to)
	l.during(300)
	l.c.net.find(from, to)
}

func requestsLost(l *load, who string) { l.oneWay(l.client.node, who) }
func answersLost(l *load, who string)  { l.oneWay(who, l.client.node) }

// reportsLost: mdm hears nothing of a server that the client reaches.
func reportsLost(l *load, who string) {
	l.c.net.lose(who, manager)
	l.during(300)
	l.c.waitHealth(l.t, "degraded", "warning", "error", "unavailable")
	l.during(300)
	l.c.net.find(who, manager)
}

// peersLost: the server that catches up cannot reach one of its sources.
func peersLost(l *load, who string) {
	l.c.kill(l.t, who)
	l.during(300)
	l.c.net.lose(who, next(who))
	l.c.start(l.t, who)
	l.during(600)
	l.c.net.find(who, next(who))
}

func powerLossWithoutNetwork(l *load, who string) {
	l.c.net.cut(manager)
	l.c.kill(l.t, who)
	l.stalls()
	l.c.net.heal(manager)
	l.during(300)
	l.c.start(l.t, who)
}

// cutAndStill: what both servers have waits for the one that is not taken out.
func cutAndStill(l *load, who string) {
	l.c.net.cut(who)
	l.during(300)
	l.c.signal(l.t, next(who), syscall.SIGSTOP)
	l.stalls()
	l.c.signal(l.t, next(who), syscall.SIGCONT)
	l.during(300)
	l.c.net.heal(who)
}

func cutAndHung(l *load, who string) {
	l.c.net.cut(who)
	l.during(300)
	l.c.fault(l.t, next(who), "flush-delay=1h")
	l.stalls()
	l.c.good(l.t, next(who))
	l.during(300)
	l.c.net.heal(who)
}

func clientCut(l *load, _ string) {
	node := l.client.node
	l.c.net.cut(node)
	l.stalls()
	l.c.net.heal(node)
}

func clientKilledInCut(l *load, who string) {
	l.c.net.cut(who)
	l.during(100)
	l.client.kill()
	l.replace()
	l.during(300)
	l.c.net.heal(who)
}

// oldClientCut: a client with requests under way was cut off while another took the
// volume.
func oldClientCut(l *load, _ string) {
	old := l.client
	l.c.net.cut(old.node)
	l.replace()
	l.during(300)
	l.returns(old, func() { l.c.net.heal(old.node) })
}
