package leasectrl

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr/funcr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/internal/oracle"
	"github.com/leasehold-go/leasehold/leasetest"
)

const lease = 15 * time.Second

// An objectServer is an API server of ConfigMaps, with one version for all of them.
type objectServer struct {
	sharding bool // as with the feature gate

	mu       sync.Mutex
	version  int
	objects  map[types.NamespacedName]*corev1.ConfigMap
	events   []watch.Event // event n made version n+1
	watchers map[*objectWatcher]bool
	failing  error         // of all requests
	slow     time.Duration // that a list takes
	old      int           // lists that an old state would do for
	sent     int           // events that were sent
}

func newObjectServer(sharding bool) *objectServer {
	return &objectServer{
		sharding: sharding, objects: map[types.NamespacedName]*corev1.ConfigMap{}, watchers: map[*objectWatcher]bool{},
		slow:    5 * time.Millisecond,
		version: 1, events: make([]watch.Event, 1), // versions begin with 2, and a list of nothing has one
	}
}

// put makes an object, or changes it.
func (s *objectServer) put(namespace, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := types.NamespacedName{Namespace: namespace, Name: name}
	s.version++
	kind := watch.Modified
	next := s.objects[id].DeepCopy()
	if next == nil {
		kind = watch.Added
		next = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: name, UID: types.UID(fmt.Sprint("uid-", s.version)),
		}}
	}
	next.ResourceVersion = strconv.Itoa(s.version)
	s.objects[id] = next
	s.publishLocked(watch.Event{Type: kind, Object: next})
}

func (s *objectServer) delete(namespace, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := types.NamespacedName{Namespace: namespace, Name: name}
	last := s.objects[id].DeepCopy()
	if last == nil {
		return
	}
	delete(s.objects, id)
	s.version++
	last.ResourceVersion = strconv.Itoa(s.version)
	s.publishLocked(watch.Event{Type: watch.Deleted, Object: last})
}

func (s *objectServer) publishLocked(event watch.Event) {
	s.events = append(s.events, event)
	for w := range s.watchers {
		w.addLocked(event)
	}
}

func (s *objectServer) get(id types.NamespacedName) *corev1.ConfigMap {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objects[id]
}

func (s *objectServer) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failing = err
}

// closeWatches ends all watches; the next of each is told that its version is too old, if expired says so.
func (s *objectServer) closeWatches(expired bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.watchers {
		if expired {
			w.addLocked(watch.Event{Type: watch.Error, Object: &apierrors.NewResourceExpired("too old").ErrStatus})
		}
		w.closeLocked()
	}
}

func (s *objectServer) matches(opts metav1.ListOptions, object runtime.Object) bool {
	r, err := parseRanges(opts.ShardSelector)
	if err != nil {
		panic(err)
	}
	cm := object.(*corev1.ConfigMap)
	value := cm.Namespace
	if len(opts.ShardSelector) > 11 && opts.ShardSelector[11:11+len(ByUID)] == ByUID {
		value = string(cm.UID)
	}
	return !s.sharding || r.has(hashOf(value))
}

func (s *objectServer) list(_ context.Context, opts metav1.ListOptions) (runtime.Object, error) {
	s.mu.Lock()
	slow := s.slow
	s.mu.Unlock()
	time.Sleep(slow)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failing != nil {
		return nil, s.failing
	}
	if opts.ResourceVersion != "" {
		s.old++
	}
	list := &corev1.ConfigMapList{ListMeta: metav1.ListMeta{ResourceVersion: strconv.Itoa(s.version)}}
	if s.sharding {
		list.ShardInfo = &metav1.ShardInfo{Selector: opts.ShardSelector}
	}
	for _, object := range s.objects {
		if s.matches(opts, object) {
			list.Items = append(list.Items, *object.DeepCopy())
		}
	}
	return list, nil
}

func (s *objectServer) watch(_ context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	time.Sleep(time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failing != nil {
		return nil, s.failing
	}
	from, err := strconv.Atoi(opts.ResourceVersion)
	if err != nil {
		return nil, err
	}
	w := &objectWatcher{server: s, opts: opts, news: make(chan struct{}, 1), results: make(chan watch.Event),
		stopped: make(chan struct{})}
	for _, event := range s.events[min(from, len(s.events)):] {
		w.addLocked(event)
	}
	s.watchers[w] = true
	go w.run()
	return w, nil
}

type objectWatcher struct {
	server  *objectServer
	opts    metav1.ListOptions
	news    chan struct{}
	results chan watch.Event
	stopped chan struct{}
	stop    sync.Once
	queue   []watch.Event // protected by the server's mu, as is
	closed  bool
}

func (w *objectWatcher) addLocked(event watch.Event) {
	if event.Type != watch.Error && !w.server.matches(w.opts, event.Object) {
		return
	}
	w.queue = append(w.queue, watch.Event{Type: event.Type, Object: event.Object.DeepCopyObject()})
	w.signal()
}

func (w *objectWatcher) closeLocked() {
	w.closed = true
	delete(w.server.watchers, w)
	w.signal()
}

func (w *objectWatcher) signal() {
	select {
	case w.news <- struct{}{}:
	default:
	}
}

func (w *objectWatcher) run() {
	defer close(w.results)
	for {
		w.server.mu.Lock()
		queue, closed := w.queue, w.closed
		w.queue = nil
		w.server.sent += len(queue)
		w.server.mu.Unlock()
		for _, event := range queue {
			select {
			case w.results <- event:
			case <-w.stopped:
				return
			}
		}
		if closed {
			return
		}
		select {
		case <-w.news:
		case <-w.stopped:
			return
		}
	}
}

func (w *objectWatcher) ResultChan() <-chan watch.Event { return w.results }

func (w *objectWatcher) Stop() {
	w.stop.Do(func() { close(w.stopped) })
	w.server.mu.Lock()
	defer w.server.mu.Unlock()
	w.closed = true
	delete(w.server.watchers, w)
}

// A sharded is replicas whose caches hold their shares.
type sharded struct {
	*testing.T
	api    *leasetest.Server
	server *objectServer
	field  string
	judge  *oracle.Keys[leasehold.Session]
	began  time.Time

	mu       sync.Mutex
	seen     map[types.NamespacedName]string // versions that were reconciled
	gone     map[types.NamespacedName]int    // how often a deleted object was
	logged   []string
	replicas []*cached
}

// A cached is a replica with a cache.
type cached struct {
	*sharded
	name   string
	ring   *leasehold.Ring
	share  *Share
	cache  toolscache.SharedIndexInformer
	client *leasetest.Client
	stop   context.CancelFunc
	ended  sync.WaitGroup
}

func newSharded(t *testing.T, server *objectServer, field string) *sharded {
	return &sharded{
		T: t, api: leasetest.NewServer(), server: server, field: field, began: time.Now(),
		judge: oracle.NewKeys(func(_ *oracle.Work[leasehold.Session], fault string) {
			t.Errorf("%v: %s", time.Now(), fault)
		}),
		seen: map[types.NamespacedName]string{}, gone: map[types.NamespacedName]int{},
	}
}

func (f *sharded) start(name string) *cached {
	ctx, stop := context.WithCancel(f.Context())
	c := &cached{sharded: f, name: name, client: f.api.Client(name), stop: stop}
	var err error
	c.ring, err = leasehold.Join(ctx, 16,
		leasehold.WithClient(c.client), leasehold.WithLease("widgets"), leasehold.WithNamespace("default"),
		leasehold.WithIdentity(name), leasehold.WithDuration(lease),
		leasehold.WithLogger(slog.New(slog.DiscardHandler)))
	if err == nil {
		c.share, err = NewShare(c.ring, f.field, &corev1.ConfigMap{})
	}
	if err != nil {
		f.Fatal(err)
	}
	c.cache = c.share.NewInformer(&toolscache.ListWatch{
		ListWithContextFunc: f.server.list, WatchFuncWithContext: f.server.watch,
	}, &corev1.ConfigMap{}, 0, toolscache.Indexers{})
	controller, err := controller.NewUnmanaged(name, controller.Options{
		Reconciler:              Reconciler(c.ring, reconcile.Func(c.reconcile), WithShare(c.share)),
		MaxConcurrentReconciles: 3, SkipNameValidation: new(true),
		UsePriorityQueue: new(false), // it leaves a goroutine behind if it is stopped while it hands out an item
	})
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []source.Source{source.Func(c.watch), Source(c.ring, c.list, WithShare(c.share))} {
		if err := controller.Watch(s); err != nil {
			f.Fatal(err)
		}
	}
	logger := funcr.New(func(_, line string) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.logged = append(f.logged, line)
	}, funcr.Options{})
	c.ended.Go(func() { c.cache.RunWithContext(log.IntoContext(ctx, logger)) })
	c.ended.Go(func() {
		if err := controller.Start(ctx); err != nil {
			f.Error(err)
		}
	})
	c.ended.Go(func() { c.ring.Wait() })
	f.replicas = append(f.replicas, c)
	return c
}

func (c *cached) quit() {
	c.stop()
	c.ended.Wait()
	c.replicas = slices.DeleteFunc(c.replicas, func(other *cached) bool { return c == other })
}

// watch enqueues what happens in the cache, as controller-runtime does.
func (c *cached) watch(_ context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	enqueue := func(object any) {
		if last, ok := object.(toolscache.DeletedFinalStateUnknown); ok {
			object = last.Obj
		}
		cm := object.(*corev1.ConfigMap)
		queue.Add(reconcile.Request{NamespacedName: types.NamespacedName{Namespace: cm.Namespace, Name: cm.Name}})
	}
	_, err := c.cache.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc: enqueue, DeleteFunc: enqueue,
		UpdateFunc: func(before, object any) {
			from, to := before.(*corev1.ConfigMap), object.(*corev1.ConfigMap)
			if older(to.ResourceVersion, from.ResourceVersion) {
				c.Errorf("%v: %s: %s has gone from %s back to %s", time.Now(), c.name, to.Name, from.ResourceVersion,
					to.ResourceVersion)
			}
			enqueue(object)
		},
	})
	return err
}

func (c *cached) list(context.Context) (requests []reconcile.Request, err error) {
	for _, object := range c.cache.GetStore().List() {
		cm := object.(*corev1.ConfigMap)
		requests = append(requests,
			reconcile.Request{NamespacedName: types.NamespacedName{Namespace: cm.Namespace, Name: cm.Name}})
	}
	return requests, nil
}

// get returns an object of the cache.
func (c *cached) get(id types.NamespacedName) *corev1.ConfigMap {
	object, ok, err := c.cache.GetStore().GetByKey(id.String())
	if err != nil || !ok {
		return nil
	}
	return object.(*corev1.ConfigMap)
}

// reconcile looks at an object twice. While it lasts, the object is missing only if it was deleted.
func (c *cached) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	s, _ := leasehold.FromContext(ctx)
	w := &oracle.Work[leasehold.Session]{
		Key: req.String(), Worker: c.name, Session: s, Token: s.FencingToken(), Since: time.Since(c.began),
	}
	c.judge.Begin(w)
	defer c.judge.End(w)
	before, first := c.server.get(req.NamespacedName), c.get(req.NamespacedName)
	select {
	case <-time.After(10 * time.Millisecond):
	case <-ctx.Done():
	}
	last, after := c.get(req.NamespacedName), c.server.get(req.NamespacedName)
	// Objects are not made again under the same name.
	if before != nil && after != nil && (first == nil || last == nil) {
		c.Errorf("%v: %s: %v exists: %v, %v, and the cache has %v, %v", time.Now(), c.name, req,
			before.ResourceVersion, after.ResourceVersion, first != nil, last != nil)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if ctx.Err() == nil && first != nil {
		if older(c.seen[req.NamespacedName], first.ResourceVersion) || c.seen[req.NamespacedName] == "" {
			c.seen[req.NamespacedName] = first.ResourceVersion
		}
	} else if first == nil {
		c.gone[req.NamespacedName]++
	}
	return reconcile.Result{}, nil
}

// check checks that each cache holds what its replica owns, as it is, and that all of it was reconciled.
func (f *sharded) check() {
	f.Helper()
	held := 0
	for _, c := range f.replicas {
		for _, object := range c.cache.GetStore().List() {
			held++
			cm := object.(*corev1.ConfigMap)
			key := string(cm.UID)
			if f.field == ByNamespace {
				key = cm.Namespace
			}
			if !c.ring.Owns(key) {
				f.Errorf("%v: %s holds %s, which it does not own", time.Now(), c.name, cm.Name)
			}
			id := types.NamespacedName{Namespace: cm.Namespace, Name: cm.Name}
			if is := f.server.get(id); is == nil || is.ResourceVersion != cm.ResourceVersion {
				f.Errorf("%v: %s holds %s as it was at %s", time.Now(), c.name, cm.Name, cm.ResourceVersion)
			}
		}
	}
	f.server.mu.Lock()
	defer f.server.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.server.old > 0 {
		f.Errorf("%v: %d lists may have been of an old state", time.Now(), f.server.old)
	}
	if held != len(f.server.objects) {
		f.Errorf("%v: the caches hold %d objects, there are %d", time.Now(), held, len(f.server.objects))
	}
	forgotten := 0
	for id, object := range f.server.objects {
		if f.seen[id] != object.ResourceVersion {
			forgotten++
		}
	}
	if forgotten > 0 {
		f.Errorf("%v: %d of %d objects are forgotten", time.Now(), forgotten, held)
	}
}

// namespace returns the namespace of an object. Names that differ at their end alone would be in one bucket.
func namespace(i int) string { return fmt.Sprintf("%d-of-the-namespaces", i%20) }

func (f *sharded) change(n int) {
	for i := range n {
		f.server.put(namespace(i), fmt.Sprint("widget-", i))
	}
}

// Each cache holds the share of its replica, and no reconcile mistakes what moves for deleted, as replicas come and go,
// with a server that shards and with one that does not, by uid and by namespace.
func TestShare(t *testing.T) {
	for _, field := range []string{ByUID, ByNamespace} {
		for _, sharding := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s,sharding=%v", field, sharding), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					const objects = 200
					f := newSharded(t, newObjectServer(sharding), field)
					f.change(objects)
					a := f.start("a")
					time.Sleep(5 * time.Second)
					f.check()
					f.start("b")
					time.Sleep(lease)
					f.check()
					sent := f.server.sent
					f.change(objects)
					time.Sleep(time.Second)
					f.check()
					want := objects
					if !sharding {
						want *= 2
					}
					if n := f.server.sent - sent; n != want {
						t.Errorf("%d changes have become %d events, want %d", objects, n, want)
					}
					f.start("c")
					time.Sleep(interval)
					f.change(objects)
					time.Sleep(lease)
					f.check()
					a.quit()
					f.change(objects)
					time.Sleep(lease)
					f.check()
					for i := range objects / 2 {
						f.server.delete(namespace(i), fmt.Sprint("widget-", i))
					}
					time.Sleep(lease)
					f.check()
					for i := range objects {
						id := types.NamespacedName{Namespace: namespace(i), Name: fmt.Sprint("widget-", i)}
						if want := i < objects/2; (f.gone[id] == 1) != want {
							t.Errorf("%v, deleted %v, was reconciled as deleted %d times", id, want, f.gone[id])
						}
					}
					for len(f.replicas) > 0 {
						f.replicas[0].quit()
					}
					said := 0
					for _, line := range f.logged {
						if strings.Contains(line, "does not shard") {
							said++
						}
					}
					if want := map[bool]int{false: 3}[sharding]; said != want {
						t.Errorf("%d replicas said that the server does not shard, want %d", said, want)
					}
				})
			})
		}
	}
}

const interval = lease / 5

// A bucket that moves stays in the cache of its former owner until its reconciles have returned.
func TestShareDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newSharded(t, newObjectServer(true), ByUID)
		f.change(30)
		a := f.start("a")
		time.Sleep(5 * time.Second)
		release := make(chan struct{})
		at := make(chan types.NamespacedName, 100)
		r := Reconciler(a.ring, reconcile.Func(
			func(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
				at <- req.NamespacedName
				<-release
				if a.get(req.NamespacedName) == nil {
					t.Errorf("%v is missing while it is reconciled: %v", req, context.Cause(ctx))
				}
				return reconcile.Result{}, nil
			}), WithShare(a.share))
		var working sync.WaitGroup
		requests, _ := a.list(t.Context())
		for _, req := range requests[:10] {
			working.Go(func() { _, _ = r.Reconcile(t.Context(), req) })
		}
		b := f.start("b")
		time.Sleep(2 * lease)
		if n := len(a.cache.GetStore().ListKeys()); n == 30 || n < 10 {
			t.Errorf("a holds %d of 30 objects", n)
		}
		close(release)
		working.Wait()
		time.Sleep(lease)
		if a, b := len(a.cache.GetStore().ListKeys()), len(b.cache.GetStore().ListKeys()); a+b != 30 || len(at) != 10 {
			t.Errorf("a holds %d objects, b %d; %d were reconciled at a", a, b, len(at))
		}
		a.quit()
		b.quit()
	})
}

// What a gained bucket holds is reconciled only once the cache holds it, whatever asks for it before.
func TestShareCovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newSharded(t, newObjectServer(true), ByNamespace)
		f.change(100)
		a := f.start("a")
		time.Sleep(5 * time.Second)
		f.server.mu.Lock()
		f.server.slow = 2 * time.Second
		f.server.mu.Unlock()
		b := f.start("b")
		called, early := 0, 0
		r := Reconciler(b.ring, reconcile.Func(
			func(_ context.Context, req reconcile.Request) (reconcile.Result, error) {
				called++
				if b.get(req.NamespacedName) == nil {
					t.Errorf("%v: %v is missing", time.Now(), req)
				}
				return reconcile.Result{}, nil
			}), WithShare(b.share))
		for end := time.Now().Add(lease); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			for i := range 20 {
				before := called
				id := types.NamespacedName{Namespace: namespace(i), Name: fmt.Sprint("widget-", i)}
				_, _ = r.Reconcile(t.Context(), reconcile.Request{NamespacedName: id})
				if called == before && b.ring.Owns(id.Namespace) {
					early++
				}
			}
		}
		if called == 0 || early == 0 {
			t.Errorf("%d reconciles; %d were left out because the cache did not cover them", called, early)
		}
		f.check()
		a.quit()
		b.quit()
	})
}

// Replicas come and go, watches break and expire, lists fail, and objects are made, changed and deleted.
func TestShareChaos(t *testing.T) {
	seeds := uint64(20)
	if testing.Short() {
		seeds = 4
	}
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 7))
			field := []string{ByUID, ByNamespace}[seed%2]
			f := newSharded(t, newObjectServer(seed%4 < 2), field)
			f.change(100)
			f.start("0")
			for step := range 150 {
				time.Sleep(time.Duration(random.IntN(1500)) * time.Millisecond)
				n := random.IntN(100)
				switch random.IntN(12) {
				case 0, 1, 2, 3:
					f.server.mu.Lock()
					_, exists := f.server.objects[types.NamespacedName{
						Namespace: namespace(n), Name: fmt.Sprint("widget-", n)}]
					f.server.mu.Unlock()
					if exists {
						f.server.put(namespace(n), fmt.Sprint("widget-", n))
					}
				case 4:
					f.server.put("made", fmt.Sprint("widget-", step))
				case 5:
					f.server.delete(namespace(n), fmt.Sprint("widget-", n))
				case 6:
					f.server.closeWatches(false)
				case 7:
					f.server.closeWatches(true)
				case 8:
					f.server.fail(errors.New("away"))
				case 9:
					f.server.fail(nil)
				case 10:
					if len(f.replicas) < 4 {
						f.start(fmt.Sprint(step))
					}
				case 11:
					if len(f.replicas) > 1 {
						f.replicas[random.IntN(len(f.replicas))].quit()
					}
				}
			}
			f.server.fail(nil)
			time.Sleep(3 * time.Minute)
			f.check()
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
			for len(f.replicas) > 0 {
				f.replicas[0].quit()
			}
		})
	}
}

// What a Share is of.
func TestNewShare(t *testing.T) {
	ring := &leasehold.Ring{}
	for _, test := range []struct {
		field string
		kinds int
	}{{"object.metadata.name", 1}, {ByUID, 0}, {ByUID, 2}, {ByNamespace, 0}} {
		kinds := slices.Repeat([]*corev1.ConfigMap{{}}, test.kinds)
		var err error
		switch len(kinds) {
		case 0:
			_, err = NewShare(ring, test.field)
		case 1:
			_, err = NewShare(ring, test.field, kinds[0])
		default:
			_, err = NewShare(ring, test.field, kinds[0], kinds[1])
		}
		if err == nil {
			t.Errorf("%s, %d kinds: no error", test.field, test.kinds)
		}
	}
}
