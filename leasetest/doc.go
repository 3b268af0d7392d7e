// Package leasetest is a Kubernetes Lease API in memory, for tests of programs that work under a lease.
//
//	srv := leasetest.NewServer()
//	client := srv.Client("a") // a coordinationv1client.LeasesGetter
//
// It answers as kube-apiserver 1.36 does for Leases: one resourceVersion counter for all, never repeated; 409 for a
// stale resourceVersion; the server's validation; merge, strategic and apply patches with field ownership; watches that
// continue exactly from a resourceVersion. Package conformance holds the proof: one table of cases which both this
// server and a real one pass.
//
// Unlike a real server it does what a test asks. Each [Client] stands for one process and its link to the server:
// [Client.OnRequest] decides the fate of each request (late, refused, lost on the way there or back, landing after
// its caller gave up), [Client.Partition] cuts the link, and the watches can be closed, silenced, delayed or made to
// say odd things. [Server.Edit], [Server.Put] and [Server.Delete] are an operator's hands.
//
// Everything runs inside a testing/synctest bubble: time is the time package's, waiting is on channels, the only
// goroutines are one per open watch, and each ends with its watch.
//
// Not modelled: namespaces (all exist), garbage collection by owner, limit and continue of a list, JSON patch,
// generateName, the 30 to 60 minutes after which a real server closes a watch that set no timeout.
package leasetest
