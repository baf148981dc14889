// SPDX-License-Identifier: Apache-2.0

// Package cli is what the command lines of all programs share: exit codes, how a
// wrong command line is told from a command that failed, and the ways in which
// flags take their defaults from the environment.
package cli
