package leasectrl

import (
	"context"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/watch"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// An informer lists and watches the share for the informer of a cache. That has one list and then one watch open, which
// follows the share: what is gained is listed and arrives as added, what was given up as deleted. To list everything
// again at each move would cost each replica its whole share, and a pause of up to 30 s after some moves.
type informer struct {
	share   *Share
	client  toolscache.ListerWatcherWithContext
	example runtime.Object   // an empty object of the kind
	store   toolscache.Store // what the cache holds
	synced  func() bool      // reports whether it holds the first list
	news    chan struct{}    // has room for one: the share wants something else

	// Of the goroutine that lists or, after it, of that which watches:
	open    *shareWatch // the last one
	live    ranges      // what is watched
	listed  bool
	version string  // up to which events arrived
	floors  []floor // of what was listed after version

	// Protected by the share's mu:
	objects map[types.NamespacedName]types.UID // what the cache holds, or is about to
	gone    map[types.NamespacedName]types.UID // deleted, and perhaps not reconciled since
	covered ranges                             // what the cache holds
	first   ranges                             // of the first list, until the cache holds that
	pending []arrival                          // what the cache is about to hold
}

// A floor says that some hashes were listed at a version: events up to that one are not news.
type floor struct {
	ranges  ranges
	version string
}

// An arrival is ranges that the cache holds once it holds an object at a version.
type arrival struct {
	ranges  ranges
	name    types.NamespacedName
	version string
}

func (i *informer) signal() {
	select {
	case i.news <- struct{}{}:
	default:
	}
}

// IsWatchListSemanticsUnSupported makes the reflector list before it watches.
func (i *informer) IsWatchListSemanticsUnSupported() bool { return true }

func (i *informer) List(opts metav1.ListOptions) (runtime.Object, error) {
	return i.ListWithContext(context.Background(), opts)
}

func (i *informer) Watch(opts metav1.ListOptions) (watch.Interface, error) {
	return i.WatchWithContext(context.Background(), opts)
}

// ListWithContext lists what is watched; the first one, what the share wants.
func (i *informer) ListWithContext(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
	i.close()
	live := i.live
	if !i.listed {
		i.share.mu.Lock()
		live = i.share.want
		i.share.mu.Unlock()
	}
	list, items, version, err := i.list(ctx, opts, live)
	if err != nil {
		return nil, err
	}
	if err := meta.SetList(list, items); err != nil {
		return nil, err
	}
	i.share.mu.Lock()
	defer i.share.mu.Unlock()
	before := i.objects
	i.objects = map[types.NamespacedName]types.UID{}
	for _, item := range items {
		i.noteLocked(item, false)
	}
	for name, uid := range before {
		if _, ok := i.objects[name]; !ok {
			i.gone[name] = uid
		}
	}
	if !i.listed {
		i.first = live
	}
	i.live, i.listed, i.version, i.floors = live, true, version, nil
	return list, nil
}

// list lists the objects in r as they are now.
func (i *informer) list(ctx context.Context, opts metav1.ListOptions, r ranges) (
	list runtime.Object, items []runtime.Object, version string, err error,
) {
	// Not from an older state, nor in parts: a former owner's writes must be in it.
	opts.ResourceVersion, opts.ResourceVersionMatch, opts.Limit, opts.Continue = "", "", 0, ""
	opts.ShardSelector = r.selector(i.share.field)
	if list, err = i.client.ListWithContext(ctx, opts); err != nil {
		return nil, nil, "", err
	}
	about, err := meta.ListAccessor(list)
	if err != nil {
		return nil, nil, "", err
	}
	if !isSharded(list) {
		i.share.warnUnsharded(ctx)
	}
	if items, err = meta.ExtractListWithAlloc(list); err != nil { // so that one does not keep all in memory
		return nil, nil, "", err
	}
	items = slices.DeleteFunc(items, func(item runtime.Object) bool {
		_, hash, err := i.identify(item)
		return err != nil || !r.has(hash)
	})
	return list, items, about.GetResourceVersion(), nil
}

// isSharded reports whether the server has honoured the selector.
func isSharded(list runtime.Object) bool {
	switch list := list.(type) {
	case metav1.ShardedListInterface:
		return list.GetShardInfo() != nil
	case *unstructured.UnstructuredList:
		info, found, err := unstructured.NestedMap(list.Object, "metadata", "shardInfo")
		return err == nil && found && info != nil
	}
	return false
}

// identify returns the name and the hash of an object.
func (i *informer) identify(object runtime.Object) (name types.NamespacedName, hash uint64, err error) {
	about, err := meta.Accessor(object)
	if err != nil {
		return name, 0, err
	}
	name = types.NamespacedName{Namespace: about.GetNamespace(), Name: about.GetName()}
	return name, hashOf(i.share.keyOf(name, about.GetUID())), nil
}

// noteLocked notes that the cache is about to hold an object, or that it was deleted.
func (i *informer) noteLocked(object runtime.Object, deleted bool) {
	about, err := meta.Accessor(object)
	if err != nil {
		return
	}
	name := types.NamespacedName{Namespace: about.GetNamespace(), Name: about.GetName()}
	if deleted {
		delete(i.objects, name)
		i.gone[name] = about.GetUID()
	} else {
		delete(i.gone, name)
		i.objects[name] = about.GetUID()
	}
}

// WatchWithContext watches the share, whatever that is, from where the last watch or list ended.
func (i *informer) WatchWithContext(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	i.close()
	ctx, cancel := context.WithCancel(ctx)
	inner, err := i.watch(ctx, opts)
	if err != nil {
		cancel()
		return nil, err
	}
	i.open = &shareWatch{
		informer: i, ctx: ctx, cancel: cancel, results: make(chan watch.Event), done: make(chan struct{}),
	}
	go i.open.run(opts, inner)
	return i.open, nil
}

// watch opens a watch of what is live.
func (i *informer) watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	opts.ResourceVersion, opts.ResourceVersionMatch, opts.SendInitialEvents = i.version, "", nil
	opts.ShardSelector = i.live.selector(i.share.field)
	return i.client.WatchWithContext(ctx, opts)
}

// close ends the watch that is open.
func (i *informer) close() {
	if i.open != nil {
		i.open.Stop()
		i.open = nil
	}
}

// OnAdd, OnUpdate and OnDelete are called when the cache holds what they tell.
func (i *informer) OnAdd(object any, _ bool) { i.arrived(object) }
func (i *informer) OnUpdate(_, object any)   { i.arrived(object) }
func (i *informer) OnDelete(object any) {
	if last, ok := object.(toolscache.DeletedFinalStateUnknown); ok {
		object = last.Obj
	}
	i.arrived(object)
}

// arrived notes that the cache has been told of an object's version.
func (i *informer) arrived(object any) {
	i.share.mu.Lock()
	defer i.share.mu.Unlock()
	if len(i.pending) == 0 {
		return
	}
	about, err := meta.Accessor(object)
	if err != nil {
		return
	}
	name := types.NamespacedName{Namespace: about.GetNamespace(), Name: about.GetName()}
	for n, a := range i.pending {
		if a.name == name && !older(about.GetResourceVersion(), a.version) {
			i.pending = slices.Delete(i.pending, n, n+1)
			i.coverLocked(a.ranges)
			return
		}
	}
}

func (i *informer) coverLocked(r ranges) {
	i.covered = i.covered.union(r)
	i.share.updateLocked()
}

// older reports whether a version is before another.
func older(version, than string) bool {
	order, err := resourceversion.CompareResourceVersion(version, than)
	return err == nil && order < 0
}

// A shareWatch is a watch of the share, for a reflector.
type shareWatch struct {
	*informer
	ctx     context.Context
	cancel  context.CancelFunc
	results chan watch.Event
	done    chan struct{} // closed when its goroutine has ended
}

func (w *shareWatch) ResultChan() <-chan watch.Event { return w.results }

// Stop returns when the goroutine has ended: nothing of a cache that was stopped goes on.
func (w *shareWatch) Stop() {
	w.cancel()
	<-w.done
}

// pollSynced is how often to look whether the cache holds the first list.
const pollSynced = 20 * time.Millisecond

// run passes on the events of inner, and of the watches that take its place as the share changes.
func (w *shareWatch) run(opts metav1.ListOptions, inner watch.Interface) {
	defer close(w.done)
	defer close(w.results)
	defer w.cancel()
	defer func() { inner.Stop() }()
	poll := time.NewTicker(pollSynced)
	defer poll.Stop()
	delays := newDelays()
	for {
		changed, err := w.adapt()
		var again <-chan time.Time
		if err == nil {
			delays = newDelays()
		} else if w.ctx.Err() == nil {
			log.FromContext(w.ctx).WithName("leasectrl").Error(err,
				"Objects of gained buckets cannot be listed; trying again")
			again = time.After(delays.Step())
		}
		if changed {
			next, err := w.watch(w.ctx, opts)
			if err != nil { // the reflector opens the next one, and sees why that fails
				w.end()
				return
			}
			inner.Stop()
			inner = next
		}
		for same := true; same; {
			select {
			case <-w.ctx.Done():
				return
			case <-w.news:
				same = false
			case <-again:
				same = false
			case <-poll.C:
				if w.synced() {
					poll.Stop()
					w.share.mu.Lock()
					w.coverLocked(w.first)
					w.first = nil
					w.share.mu.Unlock()
				}
			case event, ok := <-inner.ResultChan():
				if !ok {
					w.end()
					return
				}
				if !w.pass(event) {
					return
				}
			}
		}
	}
}

// adapt lists what the share wants and is not watched, and drops what it does not want. It reports whether a watch of
// what is live now has to be opened.
func (w *shareWatch) adapt() (changed bool, err error) {
	w.share.mu.Lock()
	want := w.share.want
	kept := w.live.intersect(want)
	w.first, w.covered = w.first.intersect(kept), w.covered.intersect(kept)
	for n := range w.pending {
		w.pending[n].ranges = w.pending[n].ranges.intersect(kept)
	}
	dropped := w.forgetLocked(kept)
	w.share.mu.Unlock()
	changed = !slices.Equal(kept, w.live)
	w.live = kept
	for name, uid := range dropped {
		if !w.send(watch.Event{Type: watch.Deleted, Object: w.lastState(name, uid)}) {
			return false, w.ctx.Err()
		}
		w.share.mu.Lock()
		delete(w.objects, name)
		w.share.mu.Unlock()
	}
	gained := want.without(kept)
	if len(gained) == 0 {
		return changed, nil
	}
	_, items, version, err := w.list(w.ctx, metav1.ListOptions{}, gained)
	if err != nil {
		return changed, err
	}
	arriving := arrival{ranges: gained}
	for _, item := range items {
		name, _, err := w.identify(item)
		if err != nil {
			return changed, err
		}
		about, _ := meta.Accessor(item)
		arriving.name, arriving.version = name, about.GetResourceVersion()
		w.share.mu.Lock()
		w.noteLocked(item, false)
		if item == items[len(items)-1] {
			w.pending = append(w.pending, arriving)
		}
		w.share.mu.Unlock()
		if !w.send(watch.Event{Type: watch.Added, Object: item}) {
			return changed, w.ctx.Err()
		}
	}
	w.live = w.live.union(gained)
	w.floors = append(w.floors, floor{gained, version})
	if len(items) == 0 {
		w.share.mu.Lock()
		w.coverLocked(gained)
		w.share.mu.Unlock()
	}
	return true, nil
}

// lastState returns an object that leaves the cache.
func (w *shareWatch) lastState(name types.NamespacedName, uid types.UID) runtime.Object {
	key := toolscache.NewObjectName(name.Namespace, name.Name).String()
	if object, ok, err := w.store.GetByKey(key); err == nil && ok {
		return object.(runtime.Object)
	}
	object := w.example.DeepCopyObject()
	if about, err := meta.Accessor(object); err == nil {
		about.SetNamespace(name.Namespace)
		about.SetName(name.Name)
		about.SetUID(uid)
		about.SetResourceVersion(w.version)
	}
	return object
}

// pass passes an event on, if it is of the share and news. It is false when the watch has to end.
func (w *shareWatch) pass(event watch.Event) bool {
	if event.Type == watch.Error {
		w.send(event)
		return false
	}
	about, err := meta.Accessor(event.Object)
	if err != nil {
		return w.send(event) // the reflector says what is wrong
	}
	version := about.GetResourceVersion()
	if event.Type != watch.Bookmark {
		_, hash, err := w.identify(event.Object)
		if err != nil || !w.live.has(hash) || slices.ContainsFunc(w.floors, func(f floor) bool {
			return f.ranges.has(hash) && !older(f.version, version)
		}) {
			w.passed(version)
			return true
		}
		w.share.mu.Lock()
		w.noteLocked(event.Object, event.Type == watch.Deleted)
		w.share.mu.Unlock()
	}
	if !w.send(event) {
		return false
	}
	w.passed(version)
	return true
}

// passed notes up to which version events arrived.
func (w *shareWatch) passed(version string) {
	w.version = version
	w.floors = slices.DeleteFunc(w.floors, func(f floor) bool { return !older(version, f.version) })
}

// end tells the reflector where the watch ended. One that ends without an event is a fault to it.
func (w *shareWatch) end() {
	object := w.example.DeepCopyObject()
	about, err := meta.Accessor(object)
	if err != nil {
		panic(fmt.Sprintf("%T has no metadata", object))
	}
	about.SetResourceVersion(w.version)
	w.send(watch.Event{Type: watch.Bookmark, Object: object})
}

// send is false when the watch has ended.
func (w *shareWatch) send(event watch.Event) bool {
	select {
	case w.results <- event:
		return true
	case <-w.ctx.Done():
		return false
	}
}
