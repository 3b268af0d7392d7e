package leasehold

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/watch"
)

// A reflector keeps a leaseStore up to date. It follows the Lease by a watch of its own or, where a process has
// many leases, by the namespace's shared watch, and reads when that does not suffice.
//
// Its goroutine, run, ends when the shared watch brings all that there is, and begins again when there is something
// to look at.
type reflector struct {
	store    *leaseStore
	lease    *leaseClient
	client   *sharedClient
	clock    clock
	log      *campaignLog
	timeout  requestTimeout // for one read, and for a watch to open
	interval time.Duration  // between reads where watching is forbidden
	between  func(low, high time.Duration) time.Duration

	subscription *subscription   // to the shared watch of the namespace; nil before start; written with mu held
	ctx          context.Context // of the campaign, but does not end; written with mu held
	running      sync.WaitGroup  // run
	delays       *delays         // owned by run
	pollUntil    time.Time       // no watch is tried before; owned by run
	openAfresh   bool            // the next watch is opened afresh: without a resourceVersion; owned by run
	alarm        wakeup          // there is something for run to look at

	mu        sync.Mutex // protects following
	stop      func()     // ends run; nil while that does not run
	checkDue  bool       // run is to check whether the watch missed something
	reopenDue bool       // the check is to end with another watch in any case
	sleeping  bool       // run has returned, and is started again when there is something to look at
	closed    bool       // it is not started again
	following string     // how the Lease is followed, for the Monitor
}

// newReflector returns a reflector that keeps store up to date once it is started. A read may take timeout.
func newReflector(
	o *options, client *sharedClient, lease *leaseClient, store *leaseStore, log *campaignLog, timeout requestTimeout,
) *reflector {
	r := &reflector{
		store:    store,
		lease:    lease,
		client:   client,
		clock:    lease.clock,
		log:      log,
		delays:   newDelays(o.newBackOff, lease.user),
		timeout:  timeout,
		interval: o.renewInterval,
		between:  o.between,
		alarm:    newWakeup(),
	}
	store.contradicted = r.requestCheck
	return r
}

// start begins to follow the Lease. That goes on after ctx has ended: a body that winds down still holds the lease.
func (r *reflector) start(ctx context.Context, s *subscription) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ctx, r.subscription = context.WithoutCancel(ctx), s
	r.goRunLocked()
}

// goRunLocked starts run. The caller holds mu.
func (r *reflector) goRunLocked() {
	ctx, cancel := context.WithCancel(r.ctx)
	r.stop = cancel
	r.running.Go(func() {
		defer cancel()
		r.run(ctx)
	})
}

// close ends what start began.
func (r *reflector) close() {
	r.mu.Lock()
	r.closed = true
	stop := r.stop
	r.mu.Unlock()
	if r.subscription != nil {
		r.subscription.close()
		if stop != nil {
			stop()
		}
		r.running.Wait()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sleeping = false
	r.following = ""
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

// readPermitted reads for a caller that has a permit, or that needs none because it keeps the lease.
func (r *reflector) readPermitted(ctx context.Context) (record, error) {
	before := r.store.latest()
	rec, err := r.get(ctx)
	if err != nil {
		return record{}, err
	}
	r.store.addRead(rec, before)
	return rec, nil
}

// readAfresh reads, and forgets what was known before. Another watch is opened then.
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
	r.store.resetTo(rec)
	r.requestReopen()
	return nil
}

// get returns the first answer to a read that is sent again as long as none has come: a request that
// was lost must not keep a candidate from knowing the Lease for long once the API server answers (G8, safety.md),
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

// watchLag bounds how long it takes a watch that lives to bring a write.
const watchLag = 100 * time.Millisecond

// requestCheckUnlessHeard asks for a check if nothing has brought version, which we wrote a while ago. Where the shared
// watch follows the Lease, that one is opened again without a read.
func (r *reflector) requestCheckUnlessHeard(version uint64) {
	if heard, _ := r.store.heardVersion(); heard >= version {
		return
	}
	r.mu.Lock()
	sleeping := r.sleeping
	r.mu.Unlock()
	if sleeping {
		r.subscription.notBrought(version)
	} else {
		r.requestCheck()
	}
}

// requestCheck makes run read the Lease, and open another watch if this one missed something.
func (r *reflector) requestCheck() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requestCheckLocked()
}

// requestReopen makes run read the Lease, and open another watch in any case.
func (r *reflector) requestReopen() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reopenDue = true
	r.requestCheckLocked()
}

func (r *reflector) requestCheckLocked() {
	r.checkDue = true
	r.wakeLocked()
}

// takeCheck reports whether a check was asked for, which the caller makes.
func (r *reflector) takeCheck() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	due := r.checkDue
	r.checkDue = false
	return due
}

// reopenRequested reports whether the check is to end with another watch in any case.
func (r *reflector) reopenRequested() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reopenDue
}

// check reads the Lease, and reports whether another watch is to be opened: because this one missed something, or
// because that was asked for.
func (r *reflector) check(ctx context.Context) (reopen bool, err error) {
	heard, uid := r.store.heardVersion()
	if _, err := r.read(ctx); err != nil {
		return false, err
	}
	missed := r.store.watchMissed(heard, uid)
	r.mu.Lock()
	defer r.mu.Unlock()
	reopen = missed || r.reopenDue
	r.reopenDue = false
	return reopen, nil
}

// run follows the Lease until ctx ends, or until the shared watch does it. It begins with what was just read, if
// something was.
func (r *reflector) run(ctx context.Context) {
	for read := r.store.latest().known; ctx.Err() == nil; read = false {
		began := r.clock.now().mono
		var err error
		if r.subscription.used() {
			var served bool
			if served, err = r.subscription.catchUp(ctx); served {
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
	err = r.receive(ctx, w)
	r.openAfresh = versionExpired(err)
	return err
}

// openOwnWatch opens a watch of the Lease in bounded time: from what is known on or, where the server has forgotten
// what happened since, afresh, which is no failure: without a resourceVersion. Nothing is assumed of how new the states
// are that it lists first.
func (r *reflector) openOwnWatch(ctx context.Context) (watch.Interface, error) {
	done, err := r.client.permit(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	open := func(from record) (watch.Interface, error) {
		return openWatch(ctx, r.lease.user, r.clock, r.timeout.current(),
			func(ctx context.Context) (watch.Interface, error) { return r.lease.watch(ctx, from) })
	}
	if !r.openAfresh {
		if w, err := open(r.store.latest().record); !versionExpired(err) {
			return w, err
		}
	}
	return open(record{})
}

// receive records what w brings until it ends, another one is to be opened, or the shared watch serves the Lease.
func (r *reflector) receive(ctx context.Context, w watch.Interface) error {
	for {
		select {
		case event, open := <-w.ResultChan():
			if !open {
				return nil
			}
			if err := r.store.addEvent(event, false); err != nil {
				r.log.debug("the watch ended", "error", err)
				return err
			}
		case <-r.alarm:
			if r.subscription.serves() {
				return nil
			}
			if !r.takeCheck() {
				continue
			}
			if reopen, err := r.check(ctx); reopen || err != nil {
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
	r.sleeping, r.stop = true, nil
	r.following = "shared watch"
	return true
}

// wake makes run look at the shared watch, and whether a check is due.
func (r *reflector) wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wakeLocked()
}

func (r *reflector) wakeLocked() {
	r.alarm.signal()
	if r.sleeping && !r.closed {
		r.sleeping = false
		r.goRunLocked()
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

// describe adds to s what is known of the Lease, and how it is followed.
func (r *reflector) describe(s *LeaseStatus) {
	r.store.describe(s)
	r.mu.Lock()
	defer r.mu.Unlock()
	s.Following = r.following
}
