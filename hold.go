package leasehold

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A hold is one term at work: from the write that acquired the lease until the body has returned
// and the lease is given back, or lost.
//
// Its goroutine keep owns all that changes. The rest of the program learns three things from it:
// until when the lease may be trusted, that it was lost, and that it was renewed.
type hold struct {
	c      *campaign
	term   term
	token  uint64
	holder Holder
	began  instant

	ctx    *sessionContext
	cancel context.CancelCauseFunc // ends the session's context

	until   atomic.Pointer[instant] // trusted until then: the start of the last good write + renew deadline
	renewed chan struct{}           // has room for one: until has moved

	losing sync.Once
	lost   chan struct{} // closed when the lease is lost
	cause  error         // why; readable once lost is closed

	overran atomic.Bool // the body goes on without the lease

	group    errgroup.Group // keep, and the request it has under way
	renewing chan struct{}  // has room for that request
	kept     chan struct{}  // closed when keep has returned
	stop     chan struct{}  // closed when the body has returned, or Release was called
	stopping sync.Once
	returned atomic.Bool // the body, of a loop

	given     atomic.Bool   // to somebody who works under it
	finishing chan struct{} // has room for the one who gives the lease back
	finished  bool          // nothing is left to give back; protected by finishing
	leave     func()        // ends the campaign after a session that was acquired for itself; else nil
}

// newHold starts keeping the term that r shows, which was acquired by a write begun at sent. The
// session's context is a child of ctx.
func (c *campaign) newHold(ctx context.Context, r record, sent instant) *hold {
	inner, cancel := context.WithCancelCause(ctx)
	h := &hold{
		c:         c,
		term:      r.term(),
		token:     r.version,
		holder:    c.holder(r),
		began:     c.clock.now(),
		cancel:    cancel,
		renewed:   make(chan struct{}, 1),
		lost:      make(chan struct{}),
		renewing:  make(chan struct{}, 1),
		kept:      make(chan struct{}),
		stop:      make(chan struct{}),
		finishing: make(chan struct{}, 1),
	}
	h.ctx = &sessionContext{inner, h}
	until := sent.add(c.renewDeadline)
	h.until.Store(&until)
	k := &keeper{
		hold:    h,
		delays:  c.newDelays(),
		due:     sent.add(c.firstRenewal()),
		replies: make(chan reply, 1),
		turns:   make(chan func(), 1),
	}
	h.group.Go(func() error {
		defer close(h.kept)
		k.keep(context.WithoutCancel(ctx))
		return nil
	})
	return h
}

// left returns how much trust is left. It is negative once trust has ended.
func (h *hold) left() time.Duration { return h.until.Load().left(h.c.clock.now()) }

// check loses the lease if trust has ended, whether or not a timer has fired.
func (h *hold) check() {
	until, now := *h.until.Load(), h.c.clock.now()
	if until.left(now) > 0 {
		return
	}
	if awake := until.mono.Sub(now.mono); awake > 0 {
		h.lose(lostBy(slept, "the clock jumped by %v (the machine slept?)", (awake - until.left(now)).Round(time.Millisecond)))
		return
	}
	h.lose(lostBy(expired, "not renewed within %v", h.c.renewDeadline))
}

// lose ends the session because of cause. Nothing is written about this term any more.
func (h *hold) lose(cause error) {
	h.losing.Do(func() {
		h.cause = cause
		close(h.lost)
	})
	h.cancel(cause)
}

// loss returns why the lease was lost, or nil.
func (h *hold) loss() error {
	select {
	case <-h.lost:
		return h.cause
	default:
		return nil
	}
}

// Err returns why the session ended, or nil.
func (h *hold) Err() error { return context.Cause(h.ctx) }

// end tells that the work is done.
func (h *hold) end() {
	h.cancel(ErrReleased)
	h.stopping.Do(func() { close(h.stop) })
}

// finish ends the session: cancel, wait, release. It returns nil once nothing is held any more. If
// the API server could not be told, it may be called again. It is early if the body of a loop may go on.
func (h *hold) finish(early bool) error {
	h.end()
	h.finishing <- struct{}{} // no mutex: a bubble of testing/synctest has its time stand still where one is waited for
	defer func() { <-h.finishing }()
	expect := func(d time.Duration) {
		if !early || !h.returned.Load() { // else the campaign is at other work
			h.c.expect(d)
		}
	}
	<-h.kept
	expect(h.c.renewDeadline) // at most: a request under way, and the release while trust lasts
	h.group.Wait()
	h.c.held.CompareAndSwap(h, nil)
	var err error
	if h.finished {
		err = h.loss()
	} else {
		err = h.release()
		h.finished = err == nil || h.loss() != nil
	}
	if early {
		expect(maxDuration) // for the body
	}
	return err
}

// awaitRenewal waits for the renewal under way of a lost lease, which is cut short, but not for long if
// that does not help.
func (h *hold) awaitRenewal() {
	timer := time.NewTimer(h.c.clock.wait(h.c.renewTimeout.now()))
	defer timer.Stop()
	select {
	case h.renewing <- struct{}{}:
		<-h.renewing
	case <-timer.C:
	}
}

// release frees the lease if it is still ours, in bounded time: not beyond the trust in it, because
// it runs out by itself then. Where thousands are released at once, most of that may pass until it is our
// turn.
func (h *hold) release() error {
	c := h.c
	ctx, cancel := context.WithTimeout(context.WithoutCancel(h.ctx), c.clock.wait(h.left()))
	defer cancel()
	known := h.loss() != nil
	err := c.free(ctx, func(r record) error {
		h.check()
		if err := h.loss(); err != nil {
			return err
		}
		return h.term.judge(r, c.duration)
	})
	if errors.Is(err, ErrLost) {
		h.lose(err)
	}
	switch loss := h.loss(); {
	case known:
		return loss // as the keeper said
	case loss != nil:
		h.logLoss()
		return loss
	case err != nil:
		c.log.Warn("lease not released; it runs out by itself", "error", err)
		return err
	}
	c.ledger.released()
	c.log.Info("lease released", "fencingToken", h.token)
	h.event("stopped leading")
	return nil
}

// logLoss tells operators that the lease was lost.
func (h *hold) logLoss() {
	h.c.ledger.lost(h.cause)
	h.c.log.Warn("lease lost", "cause", h.cause, "fencingToken", h.token)
	h.event("stopped leading")
}

// event tells Kubernetes what happened to our leadership, in client-go's words.
func (h *hold) event(what string) {
	c := h.c
	if c.recorder == nil {
		return
	}
	c.recorder.Eventf(&coordinationv1.Lease{
		TypeMeta:   metav1.TypeMeta{APIVersion: coordinationv1.SchemeGroupVersion.String(), Kind: "Lease"},
		ObjectMeta: metav1.ObjectMeta{Namespace: c.api.namespace, Name: c.api.name, UID: h.term.uid},
	}, corev1.EventTypeNormal, "LeaderElection", "%s %s", c.api.identity, what)
}

// A keeper is the goroutine of a hold: it renews the lease until the body has returned, and finds
// out when it is lost.
type keeper struct {
	*hold
	delays   delays
	due      instant   // when to renew next
	pending  []renewal // the renewals that may have taken effect after the last one known to have
	inFlight bool
	queued   bool
	replies  chan reply  // has room for the one request under way
	turns    chan func() // has room for the one turn that was asked for
}

// A renewal is one try to renew.
type renewal struct {
	stamp time.Time // as it is written: no other renewal of the term has the same
	sent  instant   // when it was begun
}

type reply struct {
	record record
	err    error
	sent   instant
}

// keep returns when the body has returned and no request is under way.
func (k *keeper) keep(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	quit := func() {
		cancel()
		if k.queued {
			k.queued = false
			(<-k.turns)()
		}
	}
	defer quit()
	timer := time.NewTimer(0)
	defer timer.Stop()
	stop, stopping := k.stop, false
	for {
		k.check()
		if k.loss() != nil {
			quit()
			k.overrun(timer)
			return
		}
		now := k.c.clock.now()
		wake := k.until.Load().left(now)
		switch {
		case k.inFlight:
		case stopping:
			return
		case k.queued:
		case k.due.left(now) <= 0:
			k.queue(ctx, now)
		default:
			wake = min(wake, k.due.left(now))
		}
		k.c.expect(wake)
		timer.Reset(k.c.clock.wait(max(wake, 0)))
		select {
		case <-timer.C:
		case <-k.c.feed.changed:
			k.check()
			k.absorb(k.c.feed.latest().record)
		case reply := <-k.replies:
			k.inFlight = false
			k.check()
			k.settle(reply)
		case done := <-k.turns:
			k.queued = false
			if k.check(); stopping || k.loss() != nil {
				done()
				continue
			}
			k.renew(ctx, k.c.clock.now(), done)
		case <-k.lost:
		case <-stop:
			stop, stopping = nil, true
		}
	}
}

// queue begins a renewal or, if too many others are under way, has keep do so when it is its turn.
func (k *keeper) queue(ctx context.Context, now instant) {
	renewals := k.c.lane.renewals
	done := func() { renewals.Release(1) }
	if renewals.TryAcquire(1) {
		k.renew(ctx, now, done)
		return
	}
	k.queued = true
	k.group.Go(func() error {
		if renewals.Acquire(ctx, 1) != nil {
			done = func() {}
		}
		k.turns <- done
		return nil
	})
}

// renew begins a renewal. Its time of sending is taken before anything else happens, because trust
// is counted from it. It calls done when the request has ended.
func (k *keeper) renew(ctx context.Context, now instant, done func()) {
	r := k.c.feed.latest().record
	k.absorb(r)
	if k.loss() != nil {
		done()
		return
	}
	k.c.feed.expect(r.version)
	stamp := k.c.stamp(r)
	k.pending = append(k.pending, renewal{stamp, now})
	k.inFlight = true
	k.renewing <- struct{}{}
	k.group.Go(func() error {
		defer func() { <-k.renewing }()
		defer done()
		answer, err := k.c.write(ctx, "renew", k.c.renewTimeout.now(), func(ctx context.Context) (record, error) {
			if err := k.loss(); err != nil {
				return record{}, err
			}
			return k.c.api.renew(ctx, r, stamp)
		})
		k.replies <- reply{answer, err, now}
		return nil
	})
}

// settle takes note of the reply to a renewal.
func (k *keeper) settle(reply reply) {
	if reply.err == nil {
		k.absorb(reply.record)
	}
	k.absorb(k.c.feed.latest().record)
	if reply.err == nil && len(k.pending) == 0 {
		k.delays.reset()
		k.c.ledger.renewed(-reply.sent.left(k.c.clock.now()))
		return
	}
	// A renewal that was answered, but with another time than was sent, counts as failed.
	now := k.c.clock.now()
	// Leaves room for one more try, and for a few once there is none.
	limit := max(k.until.Load().left(now)-k.c.renewTimeout.now(), k.c.renewTimeout.least/4)
	if next := now.add(k.delays.next(reply.err, limit)); k.due.left(next) < 0 {
		k.due = next
	}
}

// absorb takes note of what the Lease says: that somebody else has it, or that a renewal took
// effect, even one whose reply never came.
func (k *keeper) absorb(r record) {
	if k.loss() != nil {
		return
	}
	if err := k.term.judge(r, k.c.duration); err != nil {
		k.lose(err)
		return
	}
	for i, p := range k.pending {
		if p.stamp == r.renewed {
			until := p.sent.add(k.c.renewDeadline)
			k.until.Store(&until)
			k.due = p.sent.add(k.c.nextRenewal())
			k.pending = append(k.pending[:0], k.pending[i+1:]...)
			signal(k.renewed)
			return
		}
	}
}

// overrun waits for the body of a lost lease to return, and says so if it does not before the
// lease may be another's by the clock alone.
func (k *keeper) overrun(timer *time.Timer) {
	c := k.c
	k.logLoss()
	c.expect(maxDuration) // for the body; whether that is too long is another question
	end := k.until.Load().add(c.duration - c.renewDeadline)
	timer.Reset(c.clock.wait(max(0, end.left(c.clock.now()))))
	select {
	case <-k.stop:
	case <-timer.C:
	}
	select {
	case <-k.stop: // even if both came at once, after a stall
	default:
		if k.given.Load() {
			k.overran.Store(true)
			c.overrun(Session{k.hold})
		}
	}
}

// unknownOutcome tells whether a write that failed with err may have taken effect nevertheless: it
// may unless the server said that it did not.
func unknownOutcome(err error) bool {
	var status apierrors.APIStatus
	ok := errors.As(err, &status)
	return !ok || status.Status().Code >= 500
}
