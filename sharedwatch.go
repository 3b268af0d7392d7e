package leasehold

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/leasehold-go/leasehold/internal/rights"
)

// A sharedWatch follows all Leases of a namespace by one watch, for the campaigns that share a client. It begins
// when there are many of them: a program with few leases needs no right to watch a whole namespace.
//
// Every reflector of the namespace subscribes from its start to its end, so that it hears of each event as
// long as the watch is open, on the watch's goroutine: a reflector only stores the event, and nothing is
// queued or dropped in between. The goroutine owns the watch. mu protects what others ask for; a reflector's
// mutex may be taken under it, never the other way round. A reflector that the shared watch serves needs no
// goroutine.
//
// When a watch ends, run opens it again after version, the newest that it brought, so that it misses nothing, and tells
// no subscriber. If the server has forgotten that version (410), or the watch brings an error before anything else, run
// opens the watch afresh, without a resourceVersion; nothing is assumed of how new the states are that it lists first.
// Then a round begins: each subscriber reads its Lease once, after the watch was opened. The answer has what came
// before, and the watch brings what comes after. So a subscriber knows all from its read on,
//
//   - however old the state is at which the watch was opened: versions that the reflector knows are old news;
//   - also if the watch ends while it still lists what exists: the version to go on from is then one
//     of a state before the subscriber's read.
//
// A subscriber that reads what the watch did not bring reports that. If the watch has brought nothing newer of other
// Leases either, it is silent, and run opens it again after its version. Else it has left something out, perhaps of
// other Leases too, and run opens it afresh.
//
// Where the namespace may not be watched, reflectors open watches of their own, and run rarely tries the shared one
// again. While the watch cannot be opened for another reason, or ends soon each time, subscribers read from time to
// time. Mode polling begins a renew interval after the last usable watch, because most outages are shorter, and ends
// when a watch has lasted for one. If that watch was opened afresh, its round begins then.
type sharedWatch struct {
	client    *sharedClient
	namespace string
	leases    Leases
	clock     clock
	user      *userCode
	log       *campaignLog
	failures  *failureLog
	delays    *delays        // owned by run
	timeout   requestTimeout // for the watch to open
	interval  time.Duration
	threshold int // from how many subscribers on it watches
	stop      context.CancelFunc
	done      chan struct{} // closed when its goroutine has ended; nil before it has begun
	mustLast  bool          // the next watch serves the subscribers only once it has lasted; owned by run
	roundDue  bool          // the watch was opened afresh, and no round has begun since; owned by run
	reopenNow wakeup        // the watch is to be opened again

	mu         sync.Mutex                 // protects following
	byName     map[string][]*subscription // by the name of the Lease
	count      int                        // of subscriptions
	state      sharedState
	openAfresh bool      // the next watch is opened afresh: this one left something out, or cannot go on
	version    uint64    // the newest that the watch brought
	openedAt   time.Time // when the watch was opened
}

// A sharedState is what subscribers need to know of the shared watch.
type sharedState struct {
	mode   sharedMode
	round  uint64 // in which each subscriber reads once
	serial int    // of the watch that is open, or was last
}

// A sharedMode says how the subscribers follow their Leases.
type sharedMode int

const (
	ownWatches sharedMode = iota // each by its own watch: the shared one has not begun, or is forbidden
	polling                      // they read from time to time
	serving                      // the shared watch brings the news, or will soon
)

// fewLeases is up to how many campaigns in a namespace each have their own watch.
const fewLeases = 16

// subscribe adds r to the shared watch of its namespace.
func (s *sharedClient) subscribe(r *reflector, o *options) *subscription {
	if sub := s.joinWatch(r, nil); sub != nil {
		return sub
	}
	return s.joinWatch(r, s.newSharedWatch(r, o)) // it runs the user's code, so that no other campaign waits for it
}

// joinWatch adds r to the shared watch of its namespace or, if there is none, to made, unless that is nil.
func (s *sharedClient) joinWatch(r *reflector, made *sharedWatch) *subscription {
	clients.Lock()
	defer clients.Unlock()
	w := s.watches[r.lease.namespace]
	if w == nil {
		if made == nil {
			return nil
		}
		w = made
		s.watches[r.lease.namespace] = w
	}
	sub := &subscription{watch: w, reflector: r}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.byName[r.lease.name] = append(w.byName[r.lease.name], sub)
	w.count++
	if w.count >= w.threshold && w.done == nil {
		var ctx context.Context
		ctx, w.stop = context.WithCancel(context.Background())
		w.done = make(chan struct{})
		w.state.mode = polling
		go w.run(ctx)
	}
	return sub
}

// newSharedWatch returns a shared watch that has not begun, as the first subscriber's options say.
func (s *sharedClient) newSharedWatch(r *reflector, o *options) *sharedWatch {
	w := &sharedWatch{
		client:    s,
		namespace: r.lease.namespace,
		leases:    s.leasesIn(r.lease.namespace),
		clock:     r.clock,
		timeout:   r.timeout,
		interval:  r.interval,
		threshold: o.hooks.shareFrom,
		reopenNow: newWakeup(),
		byName:    map[string][]*subscription{},
	}
	w.user = &userCode{clock: w.clock, abort: w.abort}
	w.log = &campaignLog{w.user, o.log, []slog.Attr{slog.String("namespace", w.namespace)}}
	w.failures = &failureLog{log: w.log, failing: &s.failing, recent: o.duration}
	w.delays = newDelays(o.newBackOff, w.user)
	return w
}

// abort ends the campaigns of all subscribers after a panic in the program's code.
func (w *sharedWatch) abort(p *userPanic) {
	for _, sub := range w.subscriptions() {
		sub.reflector.lease.user.fail(p)
	}
}

func (w *sharedWatch) subscriptions() (all []*subscription) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, subs := range w.byName {
		all = append(all, subs...)
	}
	return all
}

// current returns the state.
func (w *sharedWatch) current() sharedState {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state
}

// size returns how many subscriptions there are.
func (w *sharedWatch) size() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.count
}

// anyStore reports whether match is true of the store of any subscriber to the Lease with that name.
func (w *sharedWatch) anyStore(name string, match func(*leaseStore) bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.byName[name], func(s *subscription) bool { return match(s.reflector.store) })
}

// run watches until ctx ends.
func (w *sharedWatch) run(ctx context.Context) {
	defer close(w.done)
	defer w.failures.close()
	served := w.clock.now().mono
	for ctx.Err() == nil {
		lasted, err := w.watchOnce(ctx)
		now := w.clock.now().mono
		if lasted {
			served = now
		}
		if lasted && err == nil {
			w.delays.reset()
			continue
		}
		pause := w.delays.next(err, w.interval)
		switch {
		case ctx.Err() != nil:
			return
		case refused(err):
			w.mustLast = false
			w.update(func(s *sharedState) { s.mode = ownWatches })
			pause = refusedWatchPause(w.interval)
		case now.Sub(served) >= w.interval:
			w.mustLast = true
			w.update(func(s *sharedState) { s.mode = polling })
		}
		sleep(ctx, w.clock, pause)
	}
}

// watchOnce opens the watch, and hands out what it brings until it ends. It reports whether the watch lasted for a
// renew interval.
func (w *sharedWatch) watchOnce(ctx context.Context) (lasted bool, err error) {
	events, err := w.open(ctx)
	if versionExpired(err) { // which is no failure
		w.reopenAfresh()
		events, err = w.open(ctx)
	}
	w.failures.record("watch", err)
	if err != nil {
		return false, err
	}
	defer events.Stop()
	if !w.mustLast {
		w.serve()
	}
	timer := time.NewTimer(w.clock.wait(w.interval))
	defer timer.Stop()
	for progress := false; ; {
		select {
		case event, open := <-events.ResultChan():
			if !open {
				return lasted, nil
			}
			if err := w.handOut(event); err != nil {
				w.log.debug("the shared watch ended", "error", err)
				if !progress {
					w.reopenAfresh() // another one from there would bring the same error
				}
				return lasted, err
			}
			progress = true
		case <-timer.C:
			lasted = true
			w.serve()
		case <-w.reopenNow:
			return lasted, errMissedEvents
		case <-ctx.Done():
			return lasted, nil
		}
	}
}

// serve makes the subscribers go by the watch that is open; in a new round, if it does not go on where the last one
// ended.
func (w *sharedWatch) serve() {
	roundDue := w.roundDue
	w.mustLast, w.roundDue = false, false
	w.update(func(s *sharedState) {
		s.mode = serving
		if roundDue {
			s.round++
		}
	})
}

// errMissedEvents is why a watch is closed.
var errMissedEvents = errors.New("the watch missed events")

// open opens the watch in bounded time, where the last one ended or, if that cannot be, afresh.
func (w *sharedWatch) open(ctx context.Context) (watch.Interface, error) {
	opts := metav1.ListOptions{AllowWatchBookmarks: true}
	w.mu.Lock()
	if w.openAfresh {
		w.version = 0
	}
	if w.version > 0 {
		opts.ResourceVersion = strconv.FormatUint(w.version, 10)
	}
	w.mu.Unlock()
	events, err := openWatch(ctx, w.user, w.clock, w.timeout.current(),
		func(ctx context.Context) (watch.Interface, error) {
			events, err := w.leases.Watch(ctx, opts)
			return events, w.describe(err)
		})
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.state.serial++
	w.openedAt = w.clock.now().mono
	if opts.ResourceVersion == "" {
		w.roundDue, w.openAfresh = true, false
	}
	if !w.openAfresh { // else it turned out while this watch was opened
		select {
		case <-w.reopenNow: // asked for because of the watch before
		default:
		}
	}
	return events, nil
}

// update changes the state, and wakes the subscribers if that matters to them.
func (w *sharedWatch) update(change func(*sharedState)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.state
	change(&w.state)
	if before == w.state {
		return
	}
	for _, subs := range w.byName {
		for _, sub := range subs {
			sub.reflector.wake()
		}
	}
}

// handOut hands an event to the reflectors of its Lease.
func (w *sharedWatch) handOut(event watch.Event) error {
	if event.Type == watch.Error {
		return fmt.Errorf("watch leases in namespace %s: %w", w.namespace, watchError(event))
	}
	lease, _ := event.Object.(*coordinationv1.Lease)
	if lease == nil {
		return nil // nothing that was asked for
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, sub := range w.byName[lease.Name] {
		if err := sub.reflector.store.addEvent(event, true); err != nil {
			sub.round = unread // the event cannot be read: the Lease is read again
			sub.reflector.wake()
		}
	}
	if version, err := strconv.ParseUint(lease.ResourceVersion, 10, 64); err == nil {
		w.version = max(w.version, version)
	}
	return nil
}

// reportMissed makes run open the watch again if the one with that serial did not bring r what it has read. If it is
// too early to tell, the caller is to retry.
func (w *sharedWatch) reportMissed(r *reflector, serial int) (retry bool) {
	rec := r.store.latest().record
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state.serial != serial || rec.exists() && r.store.watchBrought(rec.version) {
		return false // it will, or has by now
	}
	if !rec.exists() {
		return w.reopenLocked(math.MaxUint64) // the version of a deletion is not in an answer
	}
	return w.reopenLocked(rec.version)
}

// reopenLocked makes run open the watch again that did not bring version: after what it brought, or afresh if it left
// that out. If the watch was opened only just now, nothing is done, and the caller may retry. The caller holds mu.
func (w *sharedWatch) reopenLocked(version uint64) (retry bool) {
	if w.clock.now().mono.Sub(w.openedAt) < w.interval {
		return true
	}
	w.openAfresh = w.openAfresh || version <= w.version
	w.reopenNow.signal()
	return false
}

// reopenAfresh makes run open the watch again, afresh.
func (w *sharedWatch) reopenAfresh() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.openAfresh = true
	w.reopenNow.signal()
}

// describe adds to an API error what its reader needs.
func (w *sharedWatch) describe(err error) error {
	if err == nil {
		return nil
	}
	if rights.Missing(err, "watch") {
		err = fmt.Errorf("%w; each Lease is followed by a watch of its own instead", err)
		err = rights.Rule(err, w.namespace, "", "watch")
	}
	return fmt.Errorf("watch leases in namespace %s: %w", w.namespace, err)
}
