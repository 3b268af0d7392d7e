// Package leasectrl shards the controllers of controller-runtime over replicas: each object is reconciled by one
// replica at a time, in a session of the bucket that its key falls into (leasehold.Join).
//
//	ring, err := leasehold.Join(ctx, 256, leasehold.WithLease("widgets"))
//	...
//	err = ctrl.NewControllerManagedBy(mgr).For(&v1.Widget{}).
//		WatchesRawSource(leasectrl.Source(ring, leasectrl.List(mgr.GetCache(), &v1.WidgetList{}))).
//		Complete(leasectrl.Reconciler(ring, &widgets{mgr.GetClient()}))
//
// Reconciler begins the work on an object only while this replica owns the object's bucket, and ends the context of
// that work with the bucket's session. A bucket that moves waits until the reconciles in it have returned. Source
// requeues what a gained bucket holds, because the events of those objects were left out while the bucket was another
// replica's.
//
// All replicas run their controllers: the manager's own leader election is off. [Run] is for controllers that are not
// sharded, a manager for each session of one lease.
//
// Each replica caches all objects, unless it has a [Share], with which its cache holds only what the replica owns.
package leasectrl
