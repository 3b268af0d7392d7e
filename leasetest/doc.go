// Package leasetest is an in-memory Kubernetes Lease API, for tests of programs that work under a lease.
//
//	srv := leasetest.NewServer()
//	client := srv.Client("a") // a coordinationv1client.LeasesGetter
//
// It answers as kube-apiserver 1.36 does for Leases: one resourceVersion counter for all, never repeated; 409 for a
// stale resourceVersion; the server's validation; merge, strategic and apply patches with field ownership; watches that
// continue exactly from a resourceVersion. Package conformance shows it: both this server and a real one pass its table
// of cases.
//
// Unlike a real server it fails on demand. Each [Client] stands for one process and its link to the server:
// [Client.OnRequest] decides the fate of each request (late, refused, request or reply lost, in effect only after its
// caller gave up), [Client.Partition] cuts the link, and the watches can be closed, silenced, delayed or made to
// deliver invalid events. [Server.Edit], [Server.Put] and [Server.Delete] do what an operator can do.
//
// Everything runs inside a testing/synctest bubble: it takes time from package time, waits on channels, and starts one
// goroutine for each open watch, which ends with the watch.
//
// Not modelled: namespaces (all exist), garbage collection by owner, limit and continue of a list, JSON patch,
// generateName, the 30 to 60 minutes after which a real server closes a watch that set no timeout.
package leasetest
