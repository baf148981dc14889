// SPDX-License-Identifier: Apache-2.0

// Command sdc is the data client: it makes volumes usable on this machine, as
// kernel block devices or as NBD exports.
//
//	main.go       the root command, exit codes
//	attach.go     attach and detach: calls to the daemon, which attach starts
//	list.go       list and why
//	serve.go      serve: one export, in the foreground
//	daemoncmd.go  daemon and stop
//	daemon/       the daemon itself, its control socket, and what serve runs
package main
