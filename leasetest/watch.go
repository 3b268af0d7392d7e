package leasetest

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/watch"
)

// watchBuffer is how many events may wait for a slow reader. One more and the watch is closed, as a real server does:
// it never makes a writer wait for a reader.
const watchBuffer = 1024

// OnEvent delays the events of the client's watches: f says for how long after its change an event arrives. Order
// is kept, so an event waits for those before it. nil ends the delays. f is called with the server locked and must
// not call it.
func (c *Client) OnEvent(f func(watch.Event) time.Duration) {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.onEvent = f
}

// CloseWatches closes the client's watches: cleanly when err is nil, else after an ERROR event that carries err.
func (c *Client) CloseWatches(err error) {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.server.closeWatches(c.name, err)
}

// SilenceWatches stops deliveries on the watches that the client has open, as on a dead connection that has not been
// noticed: they stay open. Watches opened later are not silent.
func (c *Client) SilenceWatches() { c.eachWatch(func(w *watcher) { w.setSilent(true, true) }) }

// ResumeWatches ends the silence. With backlog the watches deliver the events that they missed, else those are lost.
func (c *Client) ResumeWatches(backlog bool) {
	c.eachWatch(func(w *watcher) { w.setSilent(false, backlog) })
}

// ReplayWatches delivers the last n changes a second time to the client's watches, as far as they match.
func (c *Client) ReplayWatches(n int) {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	history := c.server.history
	for _, w := range c.server.watches {
		if w.client != c {
			continue
		}
		for _, ev := range history[max(0, len(history)-n):] {
			if e, ok := w.view(ev); ok {
				w.push(e, time.Now())
			}
		}
	}
}

// SendEvent delivers the event, whatever it is, on the client's watches.
func (c *Client) SendEvent(ev watch.Event) {
	c.eachWatch(func(w *watcher) { w.push(ev, time.Now()) })
}

// WatchCount returns how many watches the client has open.
func (c *Client) WatchCount() int {
	n := 0
	c.eachWatch(func(*watcher) { n++ })
	return n
}

// ErrorEvent returns the watch event by which a server reports err; an err that is no API status becomes a 500.
func ErrorEvent(err error) watch.Event {
	status, ok := err.(apierrors.APIStatus)
	if !ok {
		status = apierrors.NewInternalError(err)
	}
	s := status.Status()
	return watch.Event{Type: watch.Error, Object: &s}
}

// Undecodable is the event that client-go makes of a message it cannot decode.
func Undecodable() watch.Event {
	err := fmt.Errorf("unable to decode an event from the watch stream: unexpected EOF")
	return watch.Event{
		Type: watch.Error,
		Object: apierrors.NewClientErrorReporter(
			http.StatusInternalServerError, "GET", "ClientWatchDecoding").AsObject(err),
	}
}

func (c *Client) eachWatch(f func(*watcher)) {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	for _, w := range c.server.watches {
		if w.client == c {
			f(w)
		}
	}
}

// closeWatches closes those of the named client, or all if client is empty.
func (s *Server) closeWatches(client string, err error) {
	for _, w := range s.watches {
		if client == "" || w.client.name == client {
			if err != nil {
				w.push(ErrorEvent(err), time.Now())
			}
			w.end()
		}
	}
}

// selection says which leases a list or watch covers.
type selection struct {
	namespace string
	fields    fields.Selector
	labels    labels.Selector
}

func newSelection(namespace string, opts metav1.ListOptions) (selection, error) {
	sel := selection{namespace: namespace}
	var err error
	if sel.labels, err = labels.Parse(opts.LabelSelector); err != nil {
		return sel, apierrors.NewBadRequest(err.Error())
	}
	if sel.fields, err = fields.ParseSelector(opts.FieldSelector); err != nil {
		return sel, apierrors.NewBadRequest(err.Error())
	}
	if sel.fields, err = sel.fields.Transform(runtime.DefaultMetaV1FieldSelectorConversion); err != nil {
		return sel, apierrors.NewBadRequest(err.Error())
	}
	return sel, nil
}

func (sel selection) matches(l *coordinationv1.Lease) bool {
	return l != nil &&
		(sel.namespace == "" || sel.namespace == l.Namespace) &&
		(sel.fields.Empty() ||
			sel.fields.Matches(fields.Set{"metadata.name": l.Name, "metadata.namespace": l.Namespace})) &&
		(sel.labels.Empty() || sel.labels.Matches(labels.Set(l.Labels)))
}

// selected returns the leases that match, ordered by namespace and name.
func (s *Server) selected(sel selection) []*coordinationv1.Lease {
	var found []*coordinationv1.Lease
	for _, r := range s.leases {
		if sel.matches(r.lease) {
			found = append(found, r.lease)
		}
	}
	slices.SortFunc(found, func(a, b *coordinationv1.Lease) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return found
}

// watcher is one open watch. Its goroutine moves events from the queue to result.
type watcher struct {
	selection
	server    *Server
	client    *Client
	from      uint64 // only later changes are delivered
	bookmarks bool

	result   chan watch.Event
	stopped  chan struct{}
	stopOnce sync.Once
	wake     chan struct{} // holds a token when something below has changed

	mu     sync.Mutex
	queue  []queued
	room   int  // how many events may be queued
	ended  bool // by the server: the reader learns of it after the queue
	silent bool
	cut    bool
}

type queued struct {
	watch.Event
	due time.Time
}

func (s *Server) watch(
	ctx context.Context, c *Client, namespace string, opts metav1.ListOptions,
) (watch.Interface, error) {
	sel, err := newSelection(namespace, opts)
	if err != nil {
		return nil, err
	}
	if err := checkWatchOptions(opts); err != nil {
		return nil, err
	}
	from, err := parseWatchRV(opts.ResourceVersion)
	if err != nil {
		return nil, err
	}

	w := &watcher{
		selection: sel,
		server:    s,
		client:    c,
		bookmarks: opts.AllowWatchBookmarks,
		result:    make(chan watch.Event),
		stopped:   make(chan struct{}),
		wake:      make(chan struct{}, 1),
		room:      math.MaxInt,
	}
	c.mu.Lock() // so that Partition sees this watch, or this watch sees the partition
	defer c.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	w.cut = c.cut
	w.start(from, opts.SendInitialEvents)
	w.room = len(w.queue) + watchBuffer // a reader need not be fast for what there was before
	s.watches = append(s.watches, w)
	var timeout <-chan time.Time
	if t := opts.TimeoutSeconds; t != nil && *t > 0 {
		timeout = time.After(time.Duration(*t) * time.Second)
	}
	go w.run(ctx, timeout)
	return w, nil
}

// start queues the first events of the watch.
func (w *watcher) start(from uint64, initial *bool) {
	s := w.server
	at := time.Now()
	switch {
	case initial != nil && *initial, initial == nil && from == 0:
		for _, l := range s.selected(w.selection) {
			w.push(watch.Event{Type: watch.Added, Object: l}, at)
		}
		if w.bookmarks {
			b := bookmark(s.rv)
			b.Object.(*coordinationv1.Lease).Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
			w.push(b, at)
		}
	case from == 0:
		// From now on.
	case from < s.compacted:
		err := apierrors.NewResourceExpired(fmt.Sprintf("too old resource version: %d (%d)", from, s.compacted))
		w.push(ErrorEvent(err), at)
		w.end()
	default:
		w.from = from
		for _, ev := range s.history {
			w.offer(ev)
		}
	}
}

func checkWatchOptions(opts metav1.ListOptions) error {
	var errs field.ErrorList
	match := field.NewPath("resourceVersionMatch")
	if opts.SendInitialEvents != nil && opts.ResourceVersionMatch != metav1.ResourceVersionMatchNotOlderThan {
		errs = append(errs, field.Forbidden(match,
			"sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"))
	}
	if opts.SendInitialEvents == nil && opts.ResourceVersionMatch != "" {
		errs = append(errs, field.Forbidden(match,
			"resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"))
	}
	if len(errs) > 0 {
		return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "ListOptions"}, "", errs)
	}
	return nil
}

func parseWatchRV(rv string) (uint64, error) {
	if rv == "" || rv == "0" {
		return 0, nil
	}
	n, err := strconv.ParseUint(rv, 10, 64)
	if err != nil {
		return 0, statusUnknown(field.Invalid(field.NewPath("resourceVersion"), rv, err.Error()).Error())
	}
	return n, nil
}

// offer queues the event if the watch covers it.
func (w *watcher) offer(ev event) {
	if ev.rv <= w.from {
		return
	}
	if e, ok := w.view(ev); ok {
		w.push(e, ev.time)
	}
}

// view is the event as seen through the selection: a lease that leaves it is deleted, one that enters it is added.
func (w *watcher) view(ev event) (watch.Event, bool) {
	before := w.matches(ev.old)
	after := ev.typ != watch.Deleted && w.matches(ev.new)
	switch {
	case before && after:
		return watch.Event{Type: watch.Modified, Object: ev.new}, true
	case after:
		return watch.Event{Type: watch.Added, Object: ev.new}, true
	case before && ev.typ == watch.Deleted:
		return watch.Event{Type: watch.Deleted, Object: ev.new}, true
	case before:
		old := ev.old.DeepCopy()
		old.ResourceVersion = formatRV(ev.rv)
		return watch.Event{Type: watch.Deleted, Object: old}, true
	}
	return watch.Event{}, false
}

func bookmark(rv uint64) watch.Event {
	return watch.Event{Type: watch.Bookmark,
		Object: &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{ResourceVersion: formatRV(rv)}}}
}

// push queues the event. The server is locked.
func (w *watcher) push(ev watch.Event, at time.Time) {
	if w.client.onEvent != nil {
		at = at.Add(w.client.onEvent(ev))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return
	}
	if len(w.queue) == w.room {
		w.queue, w.ended = nil, true
	} else {
		w.queue = append(w.queue, queued{ev, at})
	}
	w.signal()
}

func (w *watcher) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	w.signal()
}

func (w *watcher) setSilent(silent, backlog bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.silent && !silent && !backlog {
		w.queue = nil
	}
	w.silent = silent
	w.signal()
}

func (w *watcher) setCut(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = cut
	w.signal()
}

func (w *watcher) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// ResultChan implements watch.Interface.
func (w *watcher) ResultChan() <-chan watch.Event { return w.result }

// Stop implements watch.Interface.
func (w *watcher) Stop() { w.stopOnce.Do(func() { close(w.stopped) }) }

// run delivers until the watch ends. It alone closes result.
func (w *watcher) run(ctx context.Context, timeout <-chan time.Time) {
	defer close(w.result)
	defer w.server.forget(w)
	for {
		ev, wait, done := w.next()
		if done {
			return
		}
		if wait == 0 {
			select {
			case w.result <- ev:
			case <-w.stopped:
				return
			case <-ctx.Done():
				return
			}
			continue
		}
		var due <-chan time.Time
		if wait > 0 {
			due = time.After(wait)
		}
		select {
		case <-due:
		case <-w.wake:
		case <-timeout:
			w.end()
		case <-w.stopped:
			return
		case <-ctx.Done():
			return
		}
	}
}

// next takes the first event off the queue if it is due. Otherwise it returns how long to wait, a negative duration to
// wait until something changes. done reports that the watch has ended.
func (w *watcher) next() (ev watch.Event, wait time.Duration, done bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.silent || w.cut {
		return ev, -1, false
	}
	if len(w.queue) == 0 {
		return ev, -1, w.ended
	}
	first := w.queue[0]
	if wait := time.Until(first.due); wait > 0 {
		return ev, wait, false
	}
	w.queue[0] = queued{}
	w.queue = w.queue[1:]
	ev = first.Event
	if l, ok := ev.Object.(*coordinationv1.Lease); ok && l != nil {
		ev.Object = l.DeepCopy()
	}
	return ev, 0, false
}

func (s *Server) forget(w *watcher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watches = slices.DeleteFunc(s.watches, func(x *watcher) bool { return x == w })
}
