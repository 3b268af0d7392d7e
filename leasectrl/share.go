package leasectrl

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/leasehold-go/leasehold"
)

// Fields that a Share can shard by.
const (
	ByUID       = "object.metadata.uid"
	ByNamespace = "object.metadata.namespace"
)

// A Share restricts a cache to what this replica owns, for some kinds of objects:
//
//	share, err := leasectrl.NewShare(ring, leasectrl.ByUID, &v1.Widget{})
//	...
//	mgr, err := ctrl.NewManager(cfg, leasectrl.ManagerOptions(ctrl.Options{
//		Cache: cache.Options{NewInformer: share.NewInformer},
//	}))
//
// It goes to Reconciler and Source by WithShare. An API server with the feature gate ShardedListAndWatch (KEP-5866)
// sends only the share. From one without it the replica receives all events, says so once in the log, and keeps only
// the share.
//
// A gained bucket is listed, at a version that no write of its former owner is newer than, and its objects are
// reconciled only once the cache holds them. A bucket that was given up stays in the cache until the reconciles in it
// have returned. So while a reconcile lasts, "not found" means that the object does not exist. To event handlers an
// object that leaves the cache is deleted, and one that enters it is created; the Reconciler leaves out what such
// events enqueue for objects of others.
type Share struct {
	ring  *leasehold.Ring
	field string
	kinds []client.Object

	mu        sync.Mutex // protects following, and what the informers say; none but the ring's is taken with it held
	owned     ranges     // by the ring
	busy      map[uint64]int
	want      ranges // what the caches are to hold: owned, and the hashes that reconciles are at work on
	covered   ranges // of want, what all of the caches hold
	informers []*informer
	grown     map[int]func(ranges) // called, with mu held, with what covered gained
	last      int                  // key of grown
	unsharded sync.Once            // logs that the server does not shard
}

// NewShare returns the share of a ring in the objects of some kinds. field is ByUID, for one kind, whose uids are the
// keys; or ByNamespace, for any number of them, with which a namespace is in one bucket. Keys must be the same in all
// replicas: one with a Share and one without work on the same object.
func NewShare(ring *leasehold.Ring, field string, kinds ...client.Object) (*Share, error) {
	switch {
	case field != ByUID && field != ByNamespace:
		return nil, fmt.Errorf("leasectrl: want a share by %s or %s, not %q", ByUID, ByNamespace, field)
	case field == ByUID && len(kinds) != 1, len(kinds) == 0:
		return nil, fmt.Errorf("leasectrl: want one kind by %s, or at least one by %s, not %d kinds",
			ByUID, ByNamespace, len(kinds))
	}
	s := &Share{ring: ring, field: field, kinds: kinds, busy: map[uint64]int{}, grown: map[int]func(ranges){}}
	news := make(chan struct{}, 1)
	go func() { // ends with the ring
		defer close(news)
		for range ring.Changes() {
			select {
			case news <- struct{}{}:
			default:
			}
		}
	}()
	go func() { // looks once at changes that come together
		for range news {
			s.changed()
		}
	}()
	return s, nil
}

// NewInformer returns the informer of the cache of a kind, for cache.Options.
func (s *Share) NewInformer(
	lw toolscache.ListerWatcher, example runtime.Object, resync time.Duration, indexers toolscache.Indexers,
) toolscache.SharedIndexInformer {
	if !slices.ContainsFunc(s.kinds, func(kind client.Object) bool { return sameKind(kind, example) }) {
		return toolscache.NewSharedIndexInformer(lw, example, resync, indexers)
	}
	i := &informer{
		share: s, client: toolscache.ToListerWatcherWithContext(lw), example: example, news: make(chan struct{}, 1),
		objects: map[types.NamespacedName]types.UID{}, gone: map[types.NamespacedName]types.UID{},
	}
	shared := toolscache.NewSharedIndexInformer(i, example, resync, indexers)
	i.store, i.synced = shared.GetStore(), shared.HasSynced
	if _, err := shared.AddEventHandler(i); err != nil {
		panic(err) // it has not started
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.informers = append(s.informers, i)
	s.updateLocked()
	return shared
}

// sameKind reports whether both are of one Go type and, where that does not tell, of one kind.
func sameKind(a, b runtime.Object) bool {
	if reflect.TypeOf(a) != reflect.TypeOf(b) {
		return false
	}
	switch a.(type) {
	case runtime.Unstructured, *metav1.PartialObjectMetadata:
		return a.GetObjectKind().GroupVersionKind() == b.GetObjectKind().GroupVersionKind()
	}
	return true
}

// changed looks at what the ring owns.
func (s *Share) changed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	owned, err := parseRanges(s.ring.Selector(s.field))
	if err != nil {
		panic(err) // a ring's selector is well-formed
	}
	s.owned = owned
	s.updateLocked()
}

// updateLocked works out what the caches are to hold and what they do hold, and says so to those concerned.
func (s *Share) updateLocked() {
	var more ranges
	for hash := range s.busy {
		if !s.owned.has(hash) {
			more = append(more, span{hash, hash})
		}
	}
	if want := s.owned.union(more); !slices.Equal(want, s.want) {
		s.want = want
		for _, i := range s.informers {
			i.signal()
		}
	}
	covered := s.want
	if len(s.informers) == 0 {
		covered = nil
	}
	for _, i := range s.informers {
		covered = covered.intersect(i.covered)
	}
	gained := covered.without(s.covered)
	s.covered = covered
	if len(gained) > 0 {
		for _, grown := range s.grown {
			grown(gained)
		}
	}
}

// subscribe calls grown with what the caches hold, and with what is added to that, until the function that it returns
// is called.
func (s *Share) subscribe(grown func(ranges)) (unsubscribe func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	id := s.last
	s.grown[id] = grown
	if len(s.covered) > 0 {
		grown(s.covered)
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.grown, id)
	}
}

// enter begins work on a key: what its hash selects stays in the caches until leave is called. It is false if the
// caches do not hold that yet.
func (s *Share) enter(key string) (leave func(), ok bool) {
	hash := hashOf(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.covered.has(hash) {
		return nil, false
	}
	s.busy[hash]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.busy[hash]--; s.busy[hash] == 0 {
			delete(s.busy, hash)
			s.updateLocked()
		}
	}, true
}

// key is the KeyFunc of the share. It knows the uids of the objects that the caches hold, and of those that were
// deleted from them and are still to be reconciled; of others the error says "not found".
func (s *Share) key(_ context.Context, req reconcile.Request) (string, error) {
	if s.field == ByNamespace {
		return req.Namespace, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, uids := range []func(*informer) map[types.NamespacedName]types.UID{
		func(i *informer) map[types.NamespacedName]types.UID { return i.objects },
		func(i *informer) map[types.NamespacedName]types.UID { return i.gone },
	} {
		for _, i := range s.informers {
			if uid, ok := uids(i)[req.NamespacedName]; ok {
				return string(uid), nil
			}
		}
	}
	return "", apierrors.NewNotFound(schema.GroupResource{}, req.String())
}

// reconciled says that the object of a key was reconciled. If it is deleted, its key need not be known any longer.
func (s *Share) reconciled(name types.NamespacedName, key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range s.informers {
		if i.gone[name] == types.UID(key) {
			delete(i.gone, name)
		}
	}
}

// keyOf returns the key of an object.
func (s *Share) keyOf(name types.NamespacedName, uid types.UID) string {
	if s.field == ByNamespace {
		return name.Namespace
	}
	return string(uid)
}

// warnUnsharded logs, once, that the server does not shard.
func (s *Share) warnUnsharded(ctx context.Context) {
	s.unsharded.Do(func() {
		log.FromContext(ctx).WithName("leasectrl").Info(
			"The API server does not shard lists and watches (feature gate ShardedListAndWatch); " +
				"all events come here, and the cache keeps this replica's share")
	})
}

// forgetLocked removes what is known of objects that are not in r, and returns their names.
func (i *informer) forgetLocked(r ranges) (names map[types.NamespacedName]types.UID) {
	names = map[types.NamespacedName]types.UID{}
	for name, uid := range i.objects {
		if !r.has(hashOf(i.share.keyOf(name, uid))) {
			names[name] = uid
		}
	}
	maps.DeleteFunc(i.gone, func(name types.NamespacedName, uid types.UID) bool {
		return !r.has(hashOf(i.share.keyOf(name, uid)))
	})
	return names
}
