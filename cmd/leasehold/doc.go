// Command leasehold works with Kubernetes Leases from a shell: it runs a program only while it holds one, shows who
// holds them, and gives operators a hand. It is also a kubectl plugin, when it is installed as kubectl-leasehold.
//
// It finds the API server as kubectl does. Its commands:
//
//	run         Run a command only while holding a lease
//	get         Show who holds leases
//	watch       Follow who holds leases
//	claim       Take a lease and hold it until interrupted
//	release     Give a lease back
//	create      Create a Lease that nobody holds
//	explain     Say what the times of a lease mean
//	report      Render who held leases as an HTML page
//	completion  Print a completion script for a shell
//
// # Exit codes
//
//	0    done
//	1    failed
//	2    wrong usage
//	123  the lease was lost (run, claim)
//	124  the lease was not acquired in time (run, claim)
//
// run has those of timeout(1) and of shells beside these two:
//
//	125       leasehold itself failed, wrong usage included
//	126       the command cannot be executed
//	127       the command was not found
//	128+n     the command, or leasehold while it waited, was ended by signal n
//	any other that of the command
package main
