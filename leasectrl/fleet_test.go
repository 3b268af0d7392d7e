package leasectrl_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/internal/oracle"
	"github.com/leasehold-go/leasehold/leasectrl"
	"github.com/leasehold-go/leasehold/leasetest"
)

const (
	buckets  = 16
	duration = 15 * time.Second
	interval = 3 * time.Second
)

// A fleet is replicas of a controller in virtual time, the objects that they reconcile, and the API server of their
// Leases. A judge watches over the exclusion of each object.
type fleet struct {
	*testing.T
	api   *leasetest.Server
	judge *oracle.Keys[leasehold.Session]
	began time.Time

	mu       sync.Mutex
	objects  map[reconcile.Request]int // their generations
	seen     map[reconcile.Request]int // the generation that was reconciled last
	by       map[string]int            // reconciles by replica
	replicas map[*replica]bool
}

// A replica is a process of the fleet, with a ring and a controller.
type replica struct {
	*fleet
	name   string
	ring   *leasehold.Ring
	client *leasetest.Client
	stop   context.CancelFunc
	done   chan struct{} // closed when the controller and the ring have ended

	mu     sync.Mutex
	events []workqueue.TypedRateLimitingInterface[reconcile.Request]
}

func inFleet(t *testing.T, test func(f *fleet)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{
			T: t, api: leasetest.NewServer(), began: time.Now(), objects: map[reconcile.Request]int{},
			seen: map[reconcile.Request]int{}, by: map[string]int{}, replicas: map[*replica]bool{},
		}
		f.judge = oracle.NewKeys(func(_ *oracle.Work[leasehold.Session], fault string) {
			f.Errorf("%v: %s", time.Now(), fault)
		})
		defer func() {
			for r := range f.replicas {
				r.quit()
			}
		}()
		test(f)
	})
}

// name returns the name of an object. Names that differ at their end alone would be in few buckets.
func name(i int) string { return fmt.Sprintf("%d-of-the-widgets", i) }

func requestOf(name string) reconcile.Request {
	return reconcile.Request{NamespacedName: types.NamespacedName{Namespace: "default", Name: name}}
}

// join begins a ring of the fleet.
func (f *fleet) join(ctx context.Context, name string, opts ...leasehold.Option) (*leasehold.Ring, *leasetest.Client) {
	client := f.api.Client(name)
	ring, err := leasehold.Join(ctx, buckets, append([]leasehold.Option{
		leasehold.WithClient(client), leasehold.WithLease("widgets"), leasehold.WithNamespace("default"),
		leasehold.WithIdentity(name), leasehold.WithDuration(duration),
		leasehold.WithLogger(slog.New(slog.DiscardHandler)),
	}, opts...)...)
	if err != nil {
		f.Fatal(err)
	}
	return ring, client
}

// start starts a replica whose controller calls next.
func (f *fleet) start(name string, next reconcile.Func) *replica {
	ctx, stop := context.WithCancel(f.Context())
	r := &replica{fleet: f, name: name, stop: stop, done: make(chan struct{})}
	r.ring, r.client = f.join(ctx, name)
	c, err := controller.NewUnmanaged(name, controller.Options{
		Reconciler: leasectrl.Reconciler(r.ring, next), MaxConcurrentReconciles: 3, SkipNameValidation: new(true),
		UsePriorityQueue: new(false), // it leaves a goroutine behind if it is stopped while it hands out an item
	})
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []source.Source{source.Func(r.watch), leasectrl.Source(r.ring, f.list)} {
		if err := c.Watch(s); err != nil {
			f.Fatal(err)
		}
	}
	f.replicas[r] = true
	go func() {
		defer close(r.done)
		if err := c.Start(ctx); err != nil {
			f.Error(err)
		}
		if err := r.ring.Wait(); err != context.Canceled {
			f.Errorf("%s: the ring ended with %v", name, err)
		}
	}()
	return r
}

func (r *replica) quit() {
	r.stop()
	<-r.done
	delete(r.replicas, r)
}

// watch is a source of the events of the fleet's objects.
func (r *replica) watch(_ context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	r.mu.Lock()
	r.events = append(r.events, queue)
	r.mu.Unlock()
	requests, err := r.list(context.Background())
	for _, req := range requests {
		queue.Add(req)
	}
	return err
}

func (f *fleet) list(context.Context) ([]reconcile.Request, error) {
	f.fleetLock()
	defer f.fleetUnlock()
	return slices.Collect(maps.Keys(f.objects)), nil
}

func (f *fleet) fleetLock()   { f.mu.Lock() }
func (f *fleet) fleetUnlock() { f.mu.Unlock() }

// change makes or changes n objects. Each replica gets the events.
func (f *fleet) change(n int) {
	for i := range n {
		req := requestOf(name(i))
		f.fleetLock()
		f.objects[req]++
		f.fleetUnlock()
		for r := range f.replicas {
			r.mu.Lock()
			for _, queue := range r.events {
				queue.Add(req)
			}
			r.mu.Unlock()
		}
	}
}

// work reconciles an object, for a while, at a replica.
func (f *fleet) work(replica string, d time.Duration) reconcile.Func {
	return func(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
		s, ok := leasehold.FromContext(ctx)
		if !ok {
			f.Errorf("%s: %v: the context has no session", replica, req)
		}
		w := &oracle.Work[leasehold.Session]{
			Key: req.String(), Worker: replica, Session: s, Token: s.FencingToken(), Since: time.Since(f.began),
		}
		f.judge.Begin(w)
		defer f.judge.End(w)
		f.fleetLock()
		generation := f.objects[req]
		f.fleetUnlock()
		select {
		case <-time.After(d):
		case <-ctx.Done():
			return reconcile.Result{}, context.Cause(ctx)
		}
		f.fleetLock()
		defer f.fleetUnlock()
		f.seen[req] = max(f.seen[req], generation)
		f.by[replica]++
		return reconcile.Result{}, nil
	}
}

// allSeen checks that each object was reconciled as it is.
func (f *fleet) allSeen() {
	f.Helper()
	f.fleetLock()
	defer f.fleetUnlock()
	forgotten := 0
	for req, generation := range f.objects {
		if f.seen[req] != generation {
			forgotten++
		}
	}
	if forgotten > 0 {
		f.Errorf("%v: %d of %d objects are forgotten", time.Now(), forgotten, len(f.objects))
	}
}
