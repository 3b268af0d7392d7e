package leasehold

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
)

// A hub follows all Leases of a namespace by one watch, for the campaigns that share a lane. It begins
// to when there are many: whoever has few leases needs no right to watch a whole namespace.
//
// Every feed of the namespace is entered from its start to its end, so that it hears of each event as
// long as the hub's watch is open, on the hub's goroutine: a feed only takes note, and nothing is
// queued or dropped in between. Who owns what:
//
//   - the hub's goroutine owns the watch; mu protects what others ask for, and may be held when a
//     feed's is taken, never the other way round;
//   - a feed that the hub serves needs no goroutine. The hub, or who doubts the news, wakes it.
//
// A watch that ends is opened again after version, the newest that it brought, so that it misses
// nothing, and nobody is told. Where that cannot be, because the server has forgotten that version
// (410), the watch is opened afresh, at whatever state: an epoch begins. From its beginning each feed
// has to read its Lease once, after the watch was opened: what came before is in the answer, and what
// came after is on its way. So a feed knows all from its read on,
//
//   - however old the state is at which the watch was opened: versions that the feed knows are old news;
//   - also if the watch ends while it still tells what there is: the version to go on from is then one
//     of a state before the feed's read.
//
// A feed whose Lease turns out to have news that the watch did not bring, says so (missed). If the watch
// has brought nothing newer of other Leases either, it is silent, and opened again after its version;
// else it has left something out, which others may have missed too: an epoch begins.
//
// Where the namespace may not be watched, feeds have their own watches, and the hub tries again rarely.
// While the watch cannot be opened for another reason, feeds read from time to time, but only once that
// has lasted for a renew interval: most outages are over by then.
type hub struct {
	lane      *lane
	namespace string
	leases    coordinationv1client.LeaseInterface
	clock     clock
	outages   *outages
	delays    delays
	timeout   patience // for a watch to open
	interval  time.Duration
	many      int // from how many feeds on it watches
	stop      context.CancelFunc
	done      chan struct{} // closed when its goroutine has ended; nil before it has begun
	distrust  chan struct{} // has room for one: somebody missed news

	mu      sync.Mutex         // protects following
	feeds   map[string][]*feed // by the name of their Lease
	count   int
	state   hubState
	skipped bool // the watch left something out
	version uint64
	opened  time.Time // when the watch was

	due promise // of run
}

// A hubState is what feeds need to know of their hub.
type hubState struct {
	used    bool   // feeds shall follow by the hub
	serving bool   // it brings the news, or will soon
	epoch   uint64 // which each feed has to read once in
	opened  int    // how often a watch was opened
}

// fewLeases is up to how many campaigns in a namespace each have their own watch.
const fewLeases = 16

// enterHub enters f in the hub of its namespace.
func (l *lane) enterHub(f *feed, o *options) *hub {
	lanes.Lock()
	defer lanes.Unlock()
	namespace := f.api.namespace
	h := l.hubs[namespace]
	if h == nil {
		h = &hub{
			lane:      l,
			namespace: namespace,
			leases:    l.leases.Leases(namespace),
			clock:     o.clock,
			outages:   newOutages(o.log.With("namespace", namespace), &l.outcry, o.duration),
			delays:    o.newDelays(),
			timeout:   f.timeout,
			interval:  f.interval,
			many:      o.many,
			distrust:  make(chan struct{}, 1),
			feeds:     map[string][]*feed{},
		}
		h.promise(maxDuration) // until it begins
		l.hubs[namespace] = h
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.feeds[f.api.name] = append(h.feeds[f.api.name], f)
	h.count++
	if h.count >= h.many && h.done == nil {
		var ctx context.Context
		ctx, h.stop = context.WithCancel(context.Background())
		h.done = make(chan struct{})
		h.state.used = true
		go h.run(ctx)
	}
	return h
}

// leave takes f out, which hears nothing any more. The last one ends the hub.
func (h *hub) leave(f *feed) {
	lanes.Lock()
	h.mu.Lock()
	name := f.api.name
	before := len(h.feeds[name])
	h.feeds[name] = slices.DeleteFunc(h.feeds[name], func(other *feed) bool { return other == f })
	h.count -= before - len(h.feeds[name])
	if len(h.feeds[name]) == 0 {
		delete(h.feeds, name)
	}
	last := h.count == 0
	if last && h.lane.hubs[h.namespace] == h {
		delete(h.lane.hubs, h.namespace)
	}
	h.mu.Unlock()
	lanes.Unlock()
	if last && h.done != nil {
		h.stop()
		<-h.done
	}
}

// now returns the state of the hub.
func (h *hub) now() hubState {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.state
}

// size returns how many feeds there are.
func (h *hub) size() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.count
}

// run watches until ctx ends.
func (h *hub) run(ctx context.Context) {
	defer close(h.done)
	defer h.outages.leave()
	served := h.clock.now().mono
	for ctx.Err() == nil {
		began := h.clock.now().mono
		opened, err := h.follow(ctx)
		now := h.clock.now().mono
		if opened {
			served = now
		}
		if opened && err == nil && now.Sub(began) >= h.interval {
			h.delays.reset()
			continue
		}
		pause := h.delays.next(err, h.interval)
		switch {
		case ctx.Err() != nil:
			return
		case refused(err):
			h.change(func(s *hubState) { s.used, s.serving = false, false })
			pause = min(100*min(h.interval, time.Hour), time.Hour)
		case now.Sub(served) >= h.interval:
			h.change(func(s *hubState) { s.serving = false })
		}
		h.promise(pause)
		sleep(ctx, h.clock, pause)
	}
}

// follow opens the watch, and hands out what it brings until it ends.
func (h *hub) follow(ctx context.Context) (opened bool, err error) {
	h.promise(2 * h.timeout.now())
	w, err := h.open(ctx)
	h.outages.note("watch", err)
	if err != nil {
		return false, err
	}
	defer w.Stop()
	h.promise(maxDuration) // for news
	for progress := false; ; progress = true {
		select {
		case event, open := <-w.ResultChan():
			if !open {
				return true, nil
			}
			if err := h.take(event); err != nil {
				h.outages.log.Debug("the watch ends", "error", err)
				if !progress {
					h.forget() // it would fail there again
				}
				return true, err
			}
		case <-h.distrust:
			return true, errMissed
		case <-ctx.Done():
			return true, nil
		}
	}
}

// errMissed is why a watch is closed.
var errMissed = errors.New("the watch missed something")

// open opens the watch in bounded time, and an epoch if it does not go on where the last one ended.
func (h *hub) open(ctx context.Context) (watch.Interface, error) {
	h.mu.Lock()
	if h.skipped {
		h.version = 0
	}
	opts := metav1.ListOptions{AllowWatchBookmarks: true}
	if h.version > 0 {
		opts.ResourceVersion = strconv.FormatUint(h.version, 10)
	}
	h.mu.Unlock()
	w, err := inTime(ctx, h.clock, h.timeout.now(), func(ctx context.Context) (watch.Interface, error) {
		var asked time.Duration
		w, err := h.leases.Watch(context.WithValue(ctx, askedKey{}, &asked), opts)
		return w, h.explain(err, asked)
	})
	if err != nil {
		if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) || apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge) {
			h.forget()
		}
		return nil, err
	}
	h.change(func(s *hubState) {
		s.opened++
		s.used, s.serving = true, true
		h.opened = h.clock.now().mono
		if opts.ResourceVersion == "" {
			s.epoch++
			h.skipped = false
		}
		if !h.skipped { // else it turned out while this one was opened
			select {
			case <-h.distrust: // of the watch before
			default:
			}
		}
	})
	return w, nil
}

// forget has the watch opened afresh.
func (h *hub) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.version = 0
}

// change changes the state, and wakes the feeds if that is of interest to them.
func (h *hub) change(how func(*hubState)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.state
	how(&h.state)
	after := h.state
	before.opened, after.opened = 0, 0
	if before == after {
		return
	}
	for _, feeds := range h.feeds {
		for _, f := range feeds {
			f.wake()
		}
	}
}

// take hands an event out.
func (h *hub) take(event watch.Event) error {
	if event.Type == watch.Error {
		return fmt.Errorf("watch leases in namespace %s: %w", h.namespace, watchError(event))
	}
	lease, ok := event.Object.(*coordinationv1.Lease)
	if !ok || lease == nil {
		return nil // nothing that was asked for
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, f := range h.feeds[lease.Name] {
		if err := f.take(event); err != nil {
			f.outdate()
		}
	}
	if version, err := strconv.ParseUint(lease.ResourceVersion, 10, 64); err == nil {
		h.version = max(h.version, version)
	}
	return nil
}

// missed notes that the watch did not bring f the record that it has read. It is about the watch that
// was the last when so many had been opened. It returns false if it is too early to tell.
func (h *hub) missed(f *feed, r record, opened int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.state.opened != opened || r.exists() && f.brought(r.version) {
		return true // it will, or has by now
	}
	if !r.exists() {
		return h.suspect(math.MaxUint64) // which version that is, an answer does not say
	}
	return h.suspect(r.version)
}

// lags notes that the watch did not bring f a version that was written long ago.
func (h *hub) lags(f *feed, version uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !f.brought(version) {
		h.suspect(version)
	}
}

// suspect has the watch opened again that did not bring version, unless that was just done. The caller
// holds mu.
func (h *hub) suspect(version uint64) bool {
	if h.clock.now().mono.Sub(h.opened) < h.interval {
		return false
	}
	h.skipped = h.skipped || version <= h.version
	signal(h.distrust)
	return true
}

// explain adds to an API error what its reader needs.
func (h *hub) explain(err error, asked time.Duration) error {
	if err == nil {
		return nil
	}
	if apierrors.IsForbidden(err) {
		err = fmt.Errorf("%w; each Lease is followed by a watch of its own instead; to share one, a Role in namespace %q needs the rule "+
			"{apiGroups: [%q], resources: [%q], verbs: [%q]}", err, h.namespace, coordinationv1.GroupName, "leases", "watch")
	}
	return pausedBy(fmt.Errorf("watch leases in namespace %s: %w", h.namespace, err), asked)
}

// promise notes that run means to go on in d.
func (h *hub) promise(d time.Duration) { h.due.in(h.clock, d) }
