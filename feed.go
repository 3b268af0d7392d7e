package leasehold

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// A feed knows the newest record of a Lease. It follows the Lease by a watch of its own, or by a hub's
// where there are many, and is told the answers to our own requests, so that whoever asks it sees both
// in the order of their resourceVersions.
type feed struct {
	api     *api
	lane    *lane
	clock   clock
	viewer  viewer
	outages *outages
	delays  delays

	timeout  patience                                    // for one read, and for a watch to open
	interval time.Duration                               // between reads where watching is forbidden
	between  func(low, high time.Duration) time.Duration // by chance
	start    func()                                      // runs run on a goroutine of its own
	hub      *hub                                        // of the namespace; nil before the feed follows

	changed  chan struct{} // has room for one: there is news since it was last received from
	alarm    chan struct{} // has room for one: there is something for run to look at
	pollTill time.Time     // no watch is tried before; owned by run

	mu      sync.Mutex // protects following
	now     sighting
	heard   uint64 // the newest version that did not come from our own writes
	watched uint64 // the newest version that a watch brought
	overdue bool   // news was expected that did not come
	epoch   uint64 // of the hub, in which the Lease was last read
	resting bool   // run has returned, and is started again when there is something to look at
	gone    bool   // it is not started again

	// For the Monitor.
	following string
	updates   uint64
	updated   time.Time

	due promise // of run
}

// latest returns what is known now.
func (f *feed) latest() sighting {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

// note makes r the newest record. The caller holds mu.
func (f *feed) note(r record) {
	f.updates++
	f.updated = time.Now()
	f.now = f.viewer.see(f.now, r, f.clock.now().mono)
	signal(f.changed)
}

// learn takes note of r, the answer to a request of ours that was sent when before was known. The
// caller holds mu.
func (f *feed) learn(r record, before sighting) {
	switch {
	case r.version > f.now.version:
		f.noteAfterGap(r)
	case before.known != f.now.known || before.version != f.now.version:
		// Newer news came while the answer was under way.
	case !f.now.known:
		f.note(r)
	case !r.exists() && f.now.exists():
		f.noteAfterGap(record{version: f.now.version}) // gone; what came before stays old news
	case r.exists() && r.version < f.now.version:
		f.heard, f.watched = r.version, 0
		f.noteAfterGap(r) // the server's store was set back, as by restoring a backup
	}
}

// noteAfterGap is note for a record before which others may have gone unseen. The caller holds mu.
func (f *feed) noteAfterGap(r record) {
	if f.now.exists() && (r.uid != f.now.uid || r.version < f.now.version) {
		// The Lease is gone, or what became of it since r is. Whoever held it at the end, perhaps
		// somebody not seen here, may have renewed until just now.
		f.now.unseen = later(f.now.unseen, f.clock.now().mono.Add(max(f.now.wait, f.viewer.fallback)))
		f.now.unseenUID = f.now.uid
		if r.uid == f.now.uid {
			f.now.unseenUID = "" // its end says nothing of who held what is no more
		}
	}
	f.note(r)
}

// removed takes note that we deleted the Lease when it was as last.
func (f *feed) removed(last record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.now.version == last.version {
		f.end(last)
	}
}

// end takes note that the Lease was deleted when it was as last, so that nobody went unseen. The caller
// holds mu.
func (f *feed) end(last record) {
	if last.uid == f.now.unseenUID {
		f.now.unseen = time.Time{}
	}
	f.noteAfterGap(last)
	f.note(record{version: last.version})
}

// see takes note of r, what the Lease is after a write of ours that was sent when before was known.
func (f *feed) see(r record, before sighting) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.learn(r, before)
}

// read asks the API server when it is its turn, and takes note of the answer.
func (f *feed) read(ctx context.Context) error {
	done, err := f.lane.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	return f.readNow(ctx)
}

// readNow is read for a caller that has a turn.
func (f *feed) readNow(ctx context.Context) error {
	before := f.latest()
	r, err := f.get(ctx)
	f.outages.note("get", err)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.heard = max(f.heard, r.version)
	f.learn(r, before)
	return nil
}

// get returns the first answer to a read that is sent again as long as none has come: a request that
// was lost must not keep a candidate from knowing the Lease for long once the API server answers (G8),
// nor may a slow server's answers be thrown away. All of them share a turn: if each took its own, nobody
// would send again where many reads were lost.
func (f *feed) get(ctx context.Context) (record, error) {
	timeout := f.timeout.now()
	ctx, cancel := context.WithTimeout(ctx, f.clock.wait(timeout))
	type answer struct {
		record
		err error
	}
	var group errgroup.Group
	defer group.Wait()
	defer cancel()
	answers := make(chan answer)
	again := time.NewTicker(f.clock.wait(longestDelay))
	defer again.Stop()
	send := func() {
		group.Go(func() error {
			r, err := f.api.get(ctx)
			select {
			case answers <- answer{r, err}:
			case <-ctx.Done():
			}
			return nil
		})
	}
	for send(); ; {
		select {
		case a := <-answers:
			return a.record, a.err
		case <-ctx.Done():
			return record{}, fmt.Errorf("get lease %s/%s: no answer in %v: %w", f.api.namespace, f.api.name, timeout, ctx.Err())
		case <-again.C:
			send()
		}
	}
}

// follow begins to follow the Lease.
func (f *feed) follow(h *hub) {
	f.hub = h
	f.start()
}

// leave ends what follow began. stop returns when run has ended.
func (f *feed) leave(stop func()) {
	f.mu.Lock()
	f.gone = true
	f.mu.Unlock()
	if f.hub != nil {
		f.hub.leave(f)
	}
	stop()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.resting = false
	f.following = ""
}

// run follows the Lease until ctx ends, or until the hub does it. It begins with what was just read, if
// something was.
func (f *feed) run(ctx context.Context) {
	for read := f.latest().known; ctx.Err() == nil; read = false {
		began := f.clock.now().mono
		rests, err := f.look(ctx, began, read)
		if rests {
			return
		}
		if lasted := f.clock.now().mono.Sub(began); err == nil && lasted >= f.interval {
			f.delays.reset()
			continue
		}
		f.promise(f.interval)
		sleep(ctx, f.clock, f.delays.next(err, f.interval))
	}
	f.follows("")
}

// look follows the Lease by the hub, if that is used, else by a watch, and tells whether run may rest.
// It ends where it should begin anew.
func (f *feed) look(ctx context.Context, now time.Time, read bool) (rests bool, err error) {
	if f.hub.now().used {
		return f.attend(ctx)
	}
	return false, f.watch(ctx, now, read)
}

// attend sees to it that the feed knows all that the hub does not bring, and tells whether it does
// now.
func (f *feed) attend(ctx context.Context) (rests bool, err error) {
	for ctx.Err() == nil {
		hub := f.hub.now()
		f.mu.Lock()
		known, epoch, overdue := f.now.known, f.epoch, f.overdue
		f.overdue = false
		f.mu.Unlock()
		switch {
		case !hub.used:
			return false, nil
		case !hub.serving:
			wait := f.interval
			if !known { // perhaps it opens just now; then one read is enough
				wait = min(longestDelay, wait)
			}
			f.follows("")
			if known {
				f.follows("poll")
			}
			f.promise(wait + f.timeout.now())
			if overdue || f.pause(ctx, wait) {
				f.read(ctx) // reports its own failure
			}
		case epoch != hub.epoch:
			f.promise(f.interval + f.timeout.now())
			if known { // others have to read now too
				sleep(ctx, f.clock, f.between(0, min(f.interval/2, time.Duration(f.hub.size())*2*time.Millisecond)))
			}
			f.enter(hub.epoch) // unless it is outdated while it is read
			if err := f.read(ctx); err != nil {
				f.enter(0)
				f.follows("")
				return false, err
			}
		case overdue:
			f.promise(f.timeout.now())
			missed, err := f.check(ctx)
			if err != nil {
				f.mu.Lock()
				f.overdue = true // still
				f.mu.Unlock()
				return false, err
			}
			for missed && ctx.Err() == nil && !f.hub.missed(f, f.latest().record, hub.opened) {
				f.promise(2 * f.interval)
				f.pause(ctx, f.interval)
			}
		case f.rest():
			return true, nil
		}
	}
	return false, nil
}

// enter notes in which epoch of the hub the Lease is read.
func (f *feed) enter(epoch uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.epoch = epoch
}

// rest lets run return, unless there is something to look at.
func (f *feed) rest() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.alarm:
		return false
	default:
	}
	f.resting = true
	f.following = "shared watch"
	f.promise(maxDuration) // for news
	return true
}

// wake has run look at the hub and at what is overdue.
func (f *feed) wake() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stir()
}

// stir is wake for a caller that holds mu.
func (f *feed) stir() {
	signal(f.alarm)
	if f.resting && !f.gone {
		f.resting = false
		f.start()
	}
}

// outdate has the Lease read again, because the hub's watch brought something about it that cannot be
// read.
func (f *feed) outdate() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.epoch = 0
	f.stir()
}

// pause returns after d, or before if there is something to look at. It tells whether d has passed.
func (f *feed) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(f.clock.wait(d))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-f.alarm:
	case <-ctx.Done():
	}
	return false
}

// watch reads the Lease, unless that was just done, and watches it until the watch ends. Where it
// may not watch it only reads, and tries again to watch after a while.
func (f *feed) watch(ctx context.Context, now time.Time, read bool) error {
	f.promise(2 * f.timeout.now()) // a read, and a watch to open
	if !read {
		if err := f.read(ctx); err != nil {
			f.follows("")
			return err
		}
	}
	if now.Before(f.pollTill) {
		f.follows("poll")
		f.promise(f.interval)
		sleep(ctx, f.clock, f.interval)
		return nil
	}
	w, err := f.open(ctx)
	f.outages.note("watch", err)
	if err != nil {
		f.follows("")
		if refused(err) {
			f.pollTill = now.Add(min(100*min(f.interval, time.Hour), time.Hour))
		}
		return err
	}
	defer w.Stop()
	f.follows("watch")
	for {
		f.promise(maxDuration) // for news
		select {
		case event, open := <-w.ResultChan():
			if !open {
				return nil
			}
			if err := f.take(event); err != nil {
				f.outages.log.Debug("the watch ends", "error", err)
				return err
			}
		case <-f.alarm:
			if hub := f.hub.now(); hub.used && hub.serving {
				return nil
			}
			f.mu.Lock()
			overdue := f.overdue
			f.overdue = false
			f.mu.Unlock()
			if !overdue {
				continue
			}
			f.promise(f.timeout.now())
			if missed, err := f.check(ctx); missed || err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// open opens the watch in bounded time.
func (f *feed) open(ctx context.Context) (watch.Interface, error) {
	done, err := f.lane.turn(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return inTime(ctx, f.clock, f.timeout.now(), func(ctx context.Context) (watch.Interface, error) {
		return f.api.watch(ctx, f.latest().record)
	})
}

// inTime opens a watch in bounded time.
func inTime(ctx context.Context, c clock, timeout time.Duration, open func(context.Context) (watch.Interface, error)) (watch.Interface, error) {
	ctx, cancel := context.WithCancel(ctx)
	tooLong := time.AfterFunc(c.wait(timeout), cancel)
	w, err := open(ctx)
	if !tooLong.Stop() {
		if err == nil {
			w.Stop()
		}
		err = fmt.Errorf("opening a watch took longer than %v", timeout)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return cancelledWatch{w, cancel}, nil
}

// A cancelledWatch ends its request when it is stopped.
type cancelledWatch struct {
	watch.Interface
	cancel context.CancelFunc
}

func (w cancelledWatch) Stop() {
	w.Interface.Stop()
	w.cancel()
}

// check reads the Lease because news is overdue, and reports whether the watch missed some.
func (f *feed) check(ctx context.Context) (missed bool, err error) {
	f.mu.Lock()
	heard, uid := f.heard, f.now.uid
	f.mu.Unlock()
	if err := f.read(ctx); err != nil {
		return false, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.heard != heard || f.now.uid != uid, nil // what is gone has no version to be heard
}

// expect has the watch checked if it did not bring version, which we wrote a while ago.
func (f *feed) expect(version uint64) {
	f.mu.Lock()
	late, shared := f.heard < version, f.resting
	f.mu.Unlock()
	switch {
	case late && shared:
		f.hub.lags(f, version)
	case late:
		f.doubt()
	}
}

// doubt has the feed check its watch, which did not bring the news that were expected.
func (f *feed) doubt() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.overdue = true
	f.stir()
}

// brought tells whether a watch brought version, or a later one.
func (f *feed) brought(version uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.watched >= version
}

// take takes note of a watch event.
func (f *feed) take(event watch.Event) error {
	if event.Type == watch.Error {
		return fmt.Errorf("watch lease %s/%s: %w", f.api.namespace, f.api.name, watchError(event))
	}
	lease, ok := event.Object.(*coordinationv1.Lease)
	if !ok || lease == nil || lease.Name != f.api.name {
		return nil // nothing that was asked for
	}
	r, err := readRecord(lease)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.heard, f.watched = max(f.heard, r.version), max(f.watched, r.version)
	if f.now.known && r.version <= f.now.version {
		return nil // old news
	}
	switch event.Type {
	case watch.Added, watch.Modified:
		f.noteAfterGap(r) // of a Lease that was deleted before the watch was opened
	case watch.Deleted:
		f.end(r)
	}
	return nil
}

// watchError returns the error that a watch event is.
func watchError(event watch.Event) error {
	status, ok := event.Object.(*metav1.Status)
	if !ok || status == nil {
		return fmt.Errorf("an error without a status: %v", event.Object)
	}
	return apierrors.FromObject(status)
}

// show adds to s what is known of the Lease.
func (f *feed) show(s *LeaseStatus) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s.Following, s.UpdateTime = f.following, f.updated
	if f.now.exists() {
		s.ResourceVersion = f.now.resourceVersion()
	}
	if f.now.held() {
		s.Holder = &HolderStatus{
			Identity:    f.now.identity,
			AcquireTime: f.now.acquired,
			RenewTime:   f.now.renewed,
			Transitions: f.now.transitions,
			ExpiryTime:  time.Now().Add(f.now.since.Add(f.now.wait).Sub(f.clock.now().mono)),
		}
	}
}

// count returns how often the Lease was seen to change.
func (f *feed) count() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.updates
}

// follows notes how the Lease is followed from now on.
func (f *feed) follows(by string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.following = by
}

// watches tells whether a watch is open.
func (f *feed) watches() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.resting || f.following == "watch"
}

// promise notes that run means to go on in d.
func (f *feed) promise(d time.Duration) { f.due.in(f.clock, d) }

// late returns for how long the feed, or the hub that serves it, has done nothing that it was about to.
func (f *feed) late() time.Duration {
	f.mu.Lock()
	resting := f.resting
	f.mu.Unlock()
	if resting {
		return f.hub.due.late(f.hub.clock)
	}
	return f.due.late(f.clock)
}

// signal makes c ready to receive from, once.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
