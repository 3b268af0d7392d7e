package leasectrl

import (
	"context"
	"maps"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/leasehold-go/leasehold"
)

// Source returns a source that requeues what a bucket holds when this replica gains it. list returns the requests of
// all objects that the controller reconciles, from the cache: List is one. It is called once for buckets that are
// gained together, and again, after growing pauses of up to 10 s, while it fails.
//
// The source ends with the controller, and a goroutine of it with the ring.
func Source(
	ring *leasehold.Ring, list func(context.Context) ([]reconcile.Request, error), opts ...Option,
) source.Source {
	return &gains{ring: ring, list: list, options: newOptions(opts), news: make(chan struct{}, 1)}
}

// List returns a function for Source that lists with reader, which is the manager's cache, into copies of list. Options
// that the controller's cache has need not be repeated.
func List(
	reader client.Reader, list client.ObjectList, opts ...client.ListOption,
) func(context.Context) ([]reconcile.Request, error) {
	// Only names are read, of objects that nobody changes.
	opts = append([]client.ListOption{client.UnsafeDisableDeepCopy}, opts...)
	return func(ctx context.Context) (requests []reconcile.Request, err error) {
		list := list.DeepCopyObject().(client.ObjectList)
		if err := reader.List(ctx, list, opts...); err != nil {
			return nil, err
		}
		err = meta.EachListItem(list, func(item runtime.Object) error {
			object, err := meta.Accessor(item)
			if err == nil {
				requests = append(requests, reconcile.Request{
					NamespacedName: types.NamespacedName{Namespace: object.GetNamespace(), Name: object.GetName()},
				})
			}
			return err
		})
		return requests, err
	}
}

// gains collects what this replica gains, and requeues it.
type gains struct {
	ring *leasehold.Ring
	list func(context.Context) ([]reconcile.Request, error)
	options

	news chan struct{} // has room for one: something was gained

	mu       sync.Mutex                 // protects following
	sessions map[leasehold.Session]bool // of buckets whose objects were not requeued
	covered  ranges                     // what the cache covers since, and was not requeued
}

func (g *gains) String() string { return "buckets gained" }

// Start begins to requeue, and returns at once.
func (g *gains) Start(ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	go func() {
		for change := range g.ring.Changes() {
			if ctx.Err() != nil {
				return
			}
			g.changed(change)
		}
	}()
	if g.share != nil {
		context.AfterFunc(ctx, g.share.subscribe(g.grown))
	}
	go g.run(ctx, queue)
	return nil
}

func (g *gains) changed(change leasehold.Change) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !change.Gained {
		delete(g.sessions, change.Session)
		return
	}
	if g.sessions == nil {
		g.sessions = map[leasehold.Session]bool{}
	}
	g.sessions[change.Session] = true
	g.signal()
}

// grown says that the cache covers more.
func (g *gains) grown(more ranges) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.covered = g.covered.union(more)
	g.signal()
}

func (g *gains) signal() {
	select {
	case g.news <- struct{}{}:
	default:
	}
}

// run requeues what was gained, until ctx ends.
func (g *gains) run(ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) {
	delays := newDelays()
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.news:
		}
		g.mu.Lock()
		sessions, covered := g.sessions, g.covered
		g.sessions, g.covered = nil, nil
		g.mu.Unlock()
		if err := g.requeue(ctx, queue, sessions, covered); err == nil {
			delays = newDelays()
			continue
		} else if ctx.Err() == nil {
			log.FromContext(ctx).Error(err, "Objects of gained buckets cannot be listed; trying again")
		}
		g.mu.Lock()
		maps.DeleteFunc(sessions, func(s leasehold.Session, _ bool) bool { return s.Err() != nil })
		if g.sessions == nil {
			g.sessions = map[leasehold.Session]bool{}
		}
		maps.Copy(g.sessions, sessions)
		g.covered = g.covered.union(covered)
		g.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-time.After(delays.Step()):
			g.signal()
		}
	}
}

// requeue adds the objects whose buckets have one of the sessions, or are covered.
func (g *gains) requeue(
	ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request],
	sessions map[leasehold.Session]bool, covered ranges,
) error {
	requests, err := g.list(ctx)
	if err != nil {
		return err
	}
	for _, req := range requests {
		key, err := g.key(ctx, req)
		if apierrors.IsNotFound(err) {
			continue
		} else if err != nil {
			return err
		}
		s, leave, ok := g.ring.Enter(key)
		leave()
		if ok && (sessions[s] || covered.has(hashOf(key))) {
			queue.Add(req)
		}
	}
	return nil
}

// newDelays returns the pauses between attempts.
func newDelays() *wait.Backoff {
	return &wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 100, Cap: 10 * time.Second}
}
