// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"braid/cmd/internal/cli"
	"braid/cmd/scli/drill"
	"braid/mdm/client"
	"braid/mdm/state"
)

const drillHelp = `Rehearse faults on a cluster that runs: a volume of the drill's own is written and
read while the fault lasts, and compared afterwards; a report says what was seen.
Exit code 0: passed.

Drills are refused unless mdm and the servers concerned were started with
--allow-drills, while copies are missing or data moves, and where too few servers
are left. They touch no other volume's data, but its I/O may pause as it would in
a true fault. Faults end by themselves, also when scli is gone; only a killed
server has to be started by what starts it after a crash.`

// drillKind is one drill's command.
type drillKind struct {
	kind, short, long string
	at                bool // a server
	lasts             time.Duration
}

var drillKinds = []drillKind{
	{state.DrillKill, "Kill a data server", `Kill a data server as kill -9 does, and wait until it is back and in sync.
What starts it after a crash (systemd, or you) has to start it again.`, true, 0},
	{state.DrillPartition, "Cut a data server off for a while",
		`Cut a data server off: for a while it hears neither clients nor mdm, then it catches up.`,
		true, 15 * time.Second},
	{state.DrillSlow, "Make a data server's disks slow for a while",
		`Have each answer of a data server wait, and see how long requests then take.`, true, 15 * time.Second},
	{state.DrillRot, "Let blocks rot beneath the checksums",
		`Overwrite blocks of the drill's volume on a server's disks, beneath the checksums, and have
reads and a scrub find and mend them.`, true, 0},
	{state.DrillLeader, "Have another metadata manager lead",
		`Have the leading metadata manager give up: changes stop until one leads again, I/O does not.`, false, 0},
	{state.DrillFull, "Fill the cluster and see the autopilot extend it",
		`Fill a test cluster for real until the autopilot extends it, wait until data has spread,
compare every byte, and delete what was written. The added device stays in use. It
is refused without an autopilot that can help, and while volumes are attached.`, false, 0},
}

func (a *app) drillCommand() *cobra.Command {
	var commands []*cobra.Command
	for _, k := range drillKinds {
		commands = append(commands, a.drillKindCommand(k))
	}
	g := group("drill", "Rehearse faults on a volume of their own", commands...)
	g.Long = drillHelp
	return g
}

func (a *app) drillKindCommand(k drillKind) *cobra.Command {
	t := drill.Terms{Kind: k.kind}
	var yes bool
	var size, to string
	c := &cobra.Command{Use: k.kind, Short: k.short, Long: k.long, Args: cli.NoArgs, Example: "  scli drill " + k.kind}
	if k.at {
		c.Use += " SERVER"
		c.Example += " sds2"
		c.Args = named("server")
	}
	c.RunE = func(c *cobra.Command, args []string) (err error) {
		if k.at {
			t.Server = args[0]
		}
		if t.Size, err = parseSize("--size", size); err != nil {
			return err
		}
		if t.To, err = strconv.ParseUint(strings.TrimSuffix(to, "%"), 10, 32); err != nil {
			return cli.Usagef("--to %s: give percent, as 98%%", to)
		}
		return a.ask(c, func(ctx context.Context, mdm *client.Client) error { return a.drill(ctx, mdm, t, yes) })
	}
	f := c.Flags()
	f.DurationVar(&t.Patient, "patience", 5*time.Minute, "how long the cluster may take to be whole again")
	f.BoolVar(&t.DryRun, "dry-run", false, "only see whether it would be refused")
	f.BoolVarP(&yes, "yes", "y", false, "do not ask")
	size, to = "64M", "98"
	switch {
	case k.kind == state.DrillFull:
		f.StringVar(&to, "to", to, "percent of the space that clients can use now")
		f.BoolVar(&t.Force, "force", false, "although volumes are attached, whose writes will wait, too")
		c.Example += " --to 98 --yes"
	default:
		f.StringVar(&size, "size", size, "of the drill's volume")
	}
	if k.lasts > 0 {
		f.DurationVar(&t.For, "for", k.lasts, "how long it lasts, up to 10m")
		c.Example += " --for 30s"
	}
	if k.kind == state.DrillSlow {
		f.DurationVar(&t.Delay, "delay", 100*time.Millisecond, "of each answer")
	}
	return c
}

var errDrillFailed = errors.New("the drill did not pass")

// drill asks on a terminal, rehearses, and prints the report.
func (a *app) drill(ctx context.Context, mdm *client.Client, t drill.Terms, yes bool) error {
	what := strings.TrimSpace(t.Kind + " " + t.Server)
	if !a.json() {
		began := time.Now()
		t.Say = func(format string, args ...any) {
			fmt.Fprintf(a.warn, "%6.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
		}
	}
	dry := t
	dry.DryRun = true
	if _, err := drill.Run(ctx, mdm, dry); err != nil {
		return err
	}
	if t.DryRun {
		return a.told("drill "+what, "would begin: nothing speaks against it")
	}
	if !yes && !a.json() && isTerminal(os.Stdin) && !a.confirm("drill "+what+" now?") {
		return fmt.Errorf("drill %s: nothing was done, as the answer was not yes", what)
	}
	r, err := drill.Run(ctx, mdm, t)
	if a.json() {
		if r.Checks == nil {
			r.Checks = []drill.Check{}
		}
		if e := a.printJSON(r); e != nil {
			return e
		}
	} else {
		a.showDrill(what, r)
	}
	if err == nil && !r.Passed {
		err = errDrillFailed
	}
	return err
}

func (a *app) showDrill(what string, r drill.Report) {
	verdict := "did not pass"
	if r.Passed {
		verdict = "passed"
	}
	fmt.Fprintf(a.out, "drill %s: %s\n", what, verdict)
	rows := [][]string{}
	for _, c := range r.Checks {
		ok := "ok"
		if !c.OK {
			ok = "FAILED"
		}
		rows = append(rows, []string{ok, c.What, c.Was})
	}
	if len(rows) > 0 {
		printTable(a.out, []string{"", "CHECK", "SEEN"}, rows)
	}
	if r.Next != "" {
		fmt.Fprintln(a.out, "next: "+r.Next)
	}
}
