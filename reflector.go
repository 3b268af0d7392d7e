package leasehold

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// A reflector knows the newest record of a Lease. It follows the Lease by a watch of its own or, where a process has
// many leases, by the namespace's shared watch. The answers to the campaign's own requests go through it too, so
// that its readers see both in the order of their resourceVersions.
//
// Its goroutine, run, ends when the shared watch brings all that there is, and begins again when there is something
// to look at.
type reflector struct {
	lease    *leaseClient
	client   *sharedClient
	clock    clock
	log      *campaignLog
	fallback time.Duration   // the duration of a holder that recorded none
	ours     func(term) bool // reports whether the campaign wrote a term
	timeout  requestTimeout  // for one read, and for a watch to open
	interval time.Duration   // between reads where watching is forbidden
	between  func(low, high time.Duration) time.Duration

	changed chan struct{} // has room for one: there is news since it was last received from
	alarm   chan struct{} // has room for one: there is something for run to look at

	subscription *subscription // to the shared watch of the namespace; nil before start; written with mu held
	ctx          context.Context
	stop         context.CancelFunc
	group        errgroup.Group // run
	delays       *delays        // owned by run
	pollUntil    time.Time      // no watch is tried before; owned by run

	mu       sync.Mutex // protects following
	seen     observation
	early    watch.Event // the newest event of the shared watch that came before the first read answered
	heard    uint64      // the newest version that did not come from our own writes
	watched  uint64      // the newest version that a watch brought
	overdue  bool        // news was expected that did not come
	reopen   bool        // the watch is not to be trusted any more
	sleeping bool        // run has returned, and is started again when there is something to look at
	closed   bool        // it is not started again

	// For the Monitor.
	following string
	updates   uint64
	updated   time.Time
}

// start begins to follow the Lease. That goes on after ctx has ended: a body that winds down still holds the lease.
func (r *reflector) start(ctx context.Context, s *subscription) {
	r.ctx, r.stop = context.WithCancel(context.WithoutCancel(ctx))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.subscription = s
	r.goRun()
}

func (r *reflector) goRun() {
	r.group.Go(func() error {
		r.run(r.ctx)
		return nil
	})
}

// close ends what start began.
func (r *reflector) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	if r.subscription != nil {
		r.subscription.close()
		r.stop()
		r.group.Wait()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sleeping = false
	r.following = ""
}

// latest returns what is known now.
func (r *reflector) latest() observation {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seen
}

// unchangedSince reports whether nothing became known after o.
func (r *reflector) unchangedSince(o observation) bool {
	now := r.latest()
	return now.known == o.known && now.is(o.record)
}

// storeLocked makes rec the newest record. The caller holds mu.
func (r *reflector) storeLocked(rec record) {
	r.updates++
	r.updated = time.Now()
	r.seen = observe(r.seen, rec, r.clock.now().mono, r.fallback, r.ours)
	signal(r.changed)
}

// storeAfterGapLocked is storeLocked for a record before which others may have gone unseen. The caller holds mu.
func (r *reflector) storeAfterGapLocked(rec record) {
	if r.seen.exists() && (rec.uid != r.seen.uid || rec.version < r.seen.version) {
		// The Lease, or the state in which it was seen, does not exist any more. The holder at the end, perhaps
		// one that was not seen here, may have renewed until just now.
		r.missHolderLocked(r.seen.uid)
		if rec.uid == r.seen.uid {
			r.seen.missedHolderUID = "" // its deletion would say nothing of who held it in the lost state
		}
	}
	r.storeLocked(rec)
}

// missHolderLocked waits out a holder that was not seen, of the Lease with uid. The caller holds mu.
func (r *reflector) missHolderLocked(uid types.UID) {
	until := r.clock.now().mono.Add(max(r.seen.wait, r.fallback))
	r.seen.missedHolderUntil, r.seen.missedHolderUID = later(r.seen.missedHolderUntil, until), uid
}

// storeDeletionLocked records that the Lease was deleted when it was as last, so that no holder went unseen. The
// caller holds mu.
func (r *reflector) storeDeletionLocked(last record) {
	if last.uid == r.seen.missedHolderUID {
		r.seen.missedHolderUntil, r.seen.missedHolderUID = time.Time{}, ""
	}
	r.storeAfterGapLocked(last)
	r.storeLocked(record{version: last.version})
}

// storeAnswer records rec, what the Lease is after a write of ours that was sent when before was known.
func (r *reflector) storeAnswer(rec record, before observation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.storeAnswerLocked(rec, before)
}

// storeAnswerLocked records rec, the answer to a request of ours that was sent when before was known. The caller
// holds mu.
func (r *reflector) storeAnswerLocked(rec record, before observation) {
	now := r.seen
	switch {
	case rec.version > now.version:
		r.storeAfterGapLocked(rec)
	case before.known != now.known || before.version != now.version || before.exists() != now.exists():
		// Newer news came while the answer was under way.
	case !now.known:
		r.storeLocked(rec)
	case !rec.exists() && now.exists():
		r.storeAfterGapLocked(record{version: now.version}) // events of what was before stay old news
	case rec.exists() && !now.exists() && rec.version == now.version:
		// The Lease was not deleted, and nothing happened to it.
		if now.missedHolderUID == rec.uid {
			r.seen.missedHolderUntil, r.seen.missedHolderUID = time.Time{}, ""
		}
		r.storeLocked(rec)
	case rec.exists() && rec.version < now.version:
		r.heard, r.watched = rec.version, 0
		r.storeAfterGapLocked(rec) // the server's store was set back, as by restoring a backup
	}
	r.storeEarlyLocked()
}

// storeEarlyLocked records the event that came before the first read answered. The caller holds mu.
func (r *reflector) storeEarlyLocked() {
	if event := r.early; event.Type != "" && r.seen.known {
		r.early = watch.Event{}
		if rec, err := readRecord(event.Object.(*coordinationv1.Lease)); err == nil {
			r.storeEventLocked(event.Type, rec, true)
		}
	}
}

// storeDeletion records that we deleted the Lease when it was as last.
func (r *reflector) storeDeletion(last record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen.is(last) {
		r.storeDeletionLocked(last)
	}
}

// storeEvent records an event of the Lease's own watch, or of the shared one. An error ends an own watch.
func (r *reflector) storeEvent(event watch.Event, shared bool) error {
	if event.Type == watch.Error {
		return fmt.Errorf("watch lease %s/%s: %w", r.lease.namespace, r.lease.name, watchError(event))
	}
	lease, ok := event.Object.(*coordinationv1.Lease)
	if !ok || lease == nil || lease.Name != r.lease.name {
		return nil // nothing that was asked for
	}
	rec, err := readRecord(lease)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.heard, r.watched = max(r.heard, rec.version), max(r.watched, rec.version)
	if !r.seen.known {
		r.early = event // it may be of long ago: what is known begins with a read of our own
		return nil
	}
	r.storeEventLocked(event.Type, rec, shared)
	return nil
}

// storeEventLocked records an event that brought rec. The caller holds mu.
func (r *reflector) storeEventLocked(kind watch.EventType, rec record, shared bool) {
	switch absent := !r.seen.exists() && kind != watch.Deleted; {
	case absent && rec.version == r.seen.version, // it seems not to have been deleted
		absent && shared && r.seen.version == 0 && !r.ours(rec.term()): // it may be older than the read that found no Lease
		r.doubtLocked()
	case rec.version <= r.seen.version:
		// Old news.
	case kind == watch.Deleted:
		r.storeDeletionLocked(rec)
	case kind == watch.Added, kind == watch.Modified:
		r.storeAfterGapLocked(rec) // of a Lease that was deleted before the watch was opened
	}
}

// backdate gives the holder the time since which it was seen to do nothing before this reflector began, and returns
// what is known then.
func (r *reflector) backdate(before observation) observation {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen.activity() == before.activity() && before.since.Before(r.seen.since) {
		r.seen.since, r.seen.wait = before.since, max(before.wait, r.seen.wait)
	}
	return r.seen
}

// read returns the answer of the API server, and records it.
func (r *reflector) read(ctx context.Context) (record, error) {
	done, err := r.client.permit(ctx)
	if err != nil {
		return record{}, err
	}
	defer done()
	return r.readPermitted(ctx)
}

// readPermitted reads for a caller that has a permit.
func (r *reflector) readPermitted(ctx context.Context) (record, error) {
	before := r.latest()
	rec, err := r.get(ctx)
	if err != nil {
		return record{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.heard = max(r.heard, rec.version)
	r.storeAnswerLocked(rec, before)
	return rec, nil
}

// readAfresh reads, and forgets what was known before. Only the time for which others may still lead is kept.
func (r *reflector) readAfresh(ctx context.Context) error {
	done, err := r.client.permit(ctx)
	if err != nil {
		return err
	}
	defer done()
	rec, err := r.get(ctx)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.missHolderLocked("")
	r.seen.known, r.seen.record = false, record{}
	r.heard, r.watched = rec.version, 0
	r.storeLocked(rec)
	r.reopen = true
	r.doubtLocked()
	return nil
}

// get returns the first answer to a read that is sent again as long as none has come: a request that
// was lost must not keep a candidate from knowing the Lease for long once the API server answers (G8),
// nor may a slow server's answers be thrown away. All of them share a permit: if each took its own, no
// request could be sent again where many reads were lost.
func (r *reflector) get(ctx context.Context) (record, error) {
	timeout := r.timeout.current()
	ctx, cancel := context.WithTimeout(ctx, r.clock.wait(timeout))
	type answer struct {
		record
		err error
	}
	var group errgroup.Group
	defer group.Wait()
	defer cancel()
	answers := make(chan answer)
	again := time.NewTicker(r.clock.wait(longestDelay))
	defer again.Stop()
	send := func() {
		group.Go(func() error {
			rec, err := ask(ctx, r.lease.user, "get", timeout, r.lease.get, nil)
			select {
			case answers <- answer{rec, err}:
			case <-ctx.Done():
			}
			return nil
		})
	}
	for send(); ; {
		select {
		case a := <-answers:
			r.lease.failures.record("get", a.err)
			return a.record, a.err
		case <-ctx.Done():
			err := fmt.Errorf("get lease %s/%s: no answer in %v: %w",
				r.lease.namespace, r.lease.name, timeout, ctx.Err())
			r.lease.failures.record("get", err)
			return record{}, err
		case <-again.C:
			send()
		}
	}
}

// expectVersion checks the watch if it has not brought version, which we wrote a while ago.
func (r *reflector) expectVersion(version uint64) {
	r.mu.Lock()
	late, sleeping := r.heard < version, r.sleeping
	r.mu.Unlock()
	switch {
	case late && sleeping:
		r.subscription.late(version)
	case late:
		r.doubt()
	}
}

// distrust opens another watch, after a read.
func (r *reflector) distrust() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reopen = true
	r.doubtLocked()
}

// distrusts reports whether another watch is to be opened.
func (r *reflector) distrusts() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reopen
}

// doubt checks the watch, which did not bring the news that was expected.
func (r *reflector) doubt() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.doubtLocked()
}

func (r *reflector) doubtLocked() {
	r.overdue = true
	r.wakeLocked()
}

// takeOverdue reports whether news is overdue, which the caller looks into.
func (r *reflector) takeOverdue() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	overdue := r.overdue
	r.overdue = false
	return overdue
}

// missedNews reads the Lease because news is overdue, and reports whether the watch missed some.
func (r *reflector) missedNews(ctx context.Context) (bool, error) {
	r.mu.Lock()
	heard, uid := r.heard, r.seen.uid
	r.mu.Unlock()
	if _, err := r.read(ctx); err != nil {
		return false, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	missed := r.reopen || r.heard != heard || r.seen.uid != uid // a deletion has no version to be heard
	r.reopen = false
	return missed, nil
}

// brought reports whether a watch brought version, or a later one.
func (r *reflector) brought(version uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.watched >= version
}

// run follows the Lease until ctx ends, or until the shared watch does it. It begins with what was just read, if
// something was.
func (r *reflector) run(ctx context.Context) {
	for read := r.latest().known; ctx.Err() == nil; read = false {
		began := r.clock.now().mono
		var err error
		if r.subscription.used() {
			var served bool
			if served, err = r.subscription.follow(ctx); served {
				return
			}
		} else {
			err = r.followByOwnWatch(ctx, began, read)
		}
		if lasted := r.clock.now().mono.Sub(began); err == nil && lasted >= r.interval {
			r.delays.reset()
			continue
		}
		sleep(ctx, r.clock, r.delays.next(err, r.interval))
	}
	r.setFollowing("")
}

// followByOwnWatch reads the Lease, unless that was just done, and watches it until the watch ends. Where it
// may not watch it only reads, and tries again to watch after a while.
func (r *reflector) followByOwnWatch(ctx context.Context, now time.Time, read bool) error {
	if !read {
		if _, err := r.read(ctx); err != nil {
			r.setFollowing("")
			return err
		}
	}
	if now.Before(r.pollUntil) {
		r.setFollowing("poll")
		sleep(ctx, r.clock, r.interval)
		return nil
	}
	w, err := r.openOwnWatch(ctx)
	r.lease.failures.record("watch", err)
	if err != nil {
		r.setFollowing("")
		if refused(err) {
			r.pollUntil = now.Add(refusedWatchPause(r.interval))
		}
		return err
	}
	defer w.Stop()
	r.setFollowing("watch")
	return r.receive(ctx, w)
}

// refusedWatchPause returns for how long a watch is not tried again that was refused.
func refusedWatchPause(interval time.Duration) time.Duration {
	return min(100*min(interval, time.Hour), time.Hour)
}

// openOwnWatch opens a watch of the Lease in bounded time.
func (r *reflector) openOwnWatch(ctx context.Context) (watch.Interface, error) {
	done, err := r.client.permit(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return openWatch(ctx, r.lease.user, r.clock, r.timeout.current(), func(ctx context.Context) (watch.Interface, error) {
		return r.lease.watch(ctx, r.latest().record)
	})
}

// receive records what w brings until it ends, misses news, or the shared watch is to be used.
func (r *reflector) receive(ctx context.Context, w watch.Interface) error {
	for {
		select {
		case event, open := <-w.ResultChan():
			if !open {
				return nil
			}
			if err := r.storeEvent(event, false); err != nil {
				r.log.debug("the watch ended", "error", err)
				return err
			}
		case <-r.alarm:
			if r.subscription.serves() {
				return nil
			}
			if !r.takeOverdue() {
				continue
			}
			if missed, err := r.missedNews(ctx); missed || err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// sleepUntilWoken ends run, unless there is something to look at: the shared watch brings the news.
func (r *reflector) sleepUntilWoken() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.alarm:
		return false
	default:
	}
	r.sleeping = true
	r.following = "shared watch"
	return true
}

// wake makes run look at the shared watch and at what is overdue.
func (r *reflector) wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wakeLocked()
}

func (r *reflector) wakeLocked() {
	signal(r.alarm)
	if r.sleeping && !r.closed {
		r.sleeping = false
		r.goRun()
	}
}

// pause returns after d, or before if there is something to look at. It reports whether d has passed.
func (r *reflector) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(r.clock.wait(d))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.alarm:
	case <-ctx.Done():
	}
	return false
}

// setFollowing records how the Lease is followed from now on.
func (r *reflector) setFollowing(by string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.following = by
}

// watching reports whether a watch brings news.
func (r *reflector) watching() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sleeping || r.following == "watch"
}

// describe adds to s what is known of the Lease.
func (r *reflector) describe(s *LeaseStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.Following, s.UpdateTime = r.following, r.updated
	s.Updates += r.updates
	if r.seen.exists() {
		s.ResourceVersion = r.seen.resourceVersion()
	}
	if r.seen.held() {
		s.Holder = &HolderStatus{
			Identity:    r.seen.identity,
			AcquireTime: r.seen.acquired,
			RenewTime:   r.seen.renewed,
			Transitions: r.seen.transitions,
			ExpiryTime:  wallTimeAt(r.clock, r.seen.expiresAt()),
		}
	}
}

// wallTimeAt returns when, by the wall clock, the monotonic clock of c will show t.
func wallTimeAt(c clock, t time.Time) time.Time { return time.Now().Round(0).Add(t.Sub(c.now().mono)) }

// signal makes c ready to receive from, once.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
