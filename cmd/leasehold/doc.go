// Command leasehold works with Kubernetes Leases from a shell: it runs a program only while it holds one, and shows who
// holds them. Installed as kubectl-leasehold it is a kubectl plugin, and as kubectl_complete-leasehold it completes the
// plugin's arguments.
//
// It finds the API server as kubectl does. Its commands:
//
//	run         Run a command only while holding a lease
//	spread      Run a command for each key of this process's share
//	get         Show who holds leases
//	watch       Follow who holds leases
//	claim       Take a lease and hold it until interrupted
//	release     Release a lease that another process left behind
//	handover    Ask the holder of a lease to hand it over
//	create      Create a Lease that nobody holds
//	shares      Show who owns the keys of a group
//	explain     Explain the times of a lease
//	report      Render who held leases as an HTML page
//	completion  Print a completion script for a shell
//
// # Exit codes
//
//	0      done
//	1      failed
//	2      wrong usage
//	123    the lease was lost or handed over (run, claim)
//	124    the lease was not acquired in time (run, claim); --held-exit-code replaces it if another holds the lease
//	125    leasehold failed, or wrong usage (run, spread: in place of 1 and 2)
//	126    the command cannot be executed (run, spread)
//	127    the command was not found (run, spread)
//	128+n  signal n ended the command of run, or run, claim or handover while it waited
//	other  that of the command of run
//
// Those from 124 are the codes of timeout(1) and of shells.
package main
