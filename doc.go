// Package leasehold lets a program do work only while it holds a Kubernetes Lease.
//
//	for s := range leasehold.Sessions(ctx, leasehold.WithLease("reconciler")) {
//		reconcile(s.Context()) // cancelled the moment leadership is lost
//	}
//
// Each turn of the loop is one term of leadership. The loop waits until this process holds the lease,
// and renews it for as long as the body runs. When the body returns, in whatever way, the loop releases the
// lease, and a standby has it milliseconds later. When leadership is lost first, because the API server
// was away for too long, the process was stopped, or somebody took or deleted the Lease, the session's
// context is cancelled and says why; the next turn begins after the body has returned.
//
// # Trust
//
// A holder trusts its lease until the renew deadline, 12 s by default, after it began to send the last
// write that succeeded. A candidate takes a held lease only after the holder has shown no activity for the
// whole duration, 15 s by default, counted by the candidate's own clock from when it saw the holder's last
// write; and only by a write that fails if the Lease has changed since. So at most one session of a lease
// has a live context at any instant, whatever the network, the API server and the other candidates do, as
// long as clocks run equally fast to within a quarter. No clock is compared with another machine's.
//
// Users of a session have two duties. Work must stop when its context is cancelled: another process may
// lead three seconds later. And a process can be stopped between a call of Err and a write; a store that
// must be safe from that compares FencingToken.
//
// # Beyond the loop
//
// Acquire, TryAcquire and Do are for code that is not shaped like a loop, Chan for select. Holders
// watches who leads without competing, Vacate frees a lease from outside, and a Monitor shows all
// campaigns of a process to probes, metrics and people.
//
// WithSlots allows n sessions at once, WithPriority and WithYield decide who leads next, WithAdvertise
// publishes where the leader is reached, and WithBeat ends the session of a leader whose work is stuck.
//
// Spread and Join share out many keys among the processes of a group: at most one process works on a key
// at any instant, and each process renews one Lease however many keys it owns. Spread runs work for each
// key of a set, Join is for reconcilers, which share out buckets of hashed keys, and Shares watches who
// owns what. See docs/sharding.md.
//
// A process may campaign for thousands of leases. They share a connection and, once there are more than
// 16 in a namespace, one watch; nothing has to be set for that.
//
// The process needs the rights to get, watch and patch the Lease, and to create it unless it exists. A
// missing right is named in the log, with the rule that gives it. To share a watch, many leases in a
// namespace need the right to watch all Leases there; without it each has its own. The members of a group
// need the rights to get, list, watch, create, patch and delete Leases, of any name.
package leasehold
