package leasehold

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
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

	group    errgroup.Group // keep, and the request it has under way
	stop     chan struct{}  // closed when the body has returned
	stopping sync.Once

	given     atomic.Bool // to somebody who works under it
	finishing sync.Mutex  // held while the lease is given back
	finished  bool        // nothing is left to give back; protected by finishing
}

// newHold starts keeping the term that r shows, which was acquired by a write begun at sent. The
// session's context is a child of ctx.
func (c *campaign) newHold(ctx context.Context, r record, sent instant) *hold {
	inner, cancel := context.WithCancelCause(ctx)
	h := &hold{
		c:       c,
		term:    r.term(),
		token:   r.version,
		holder:  c.holder(r),
		began:   c.clock.now(),
		cancel:  cancel,
		renewed: make(chan struct{}, 1),
		lost:    make(chan struct{}),
		stop:    make(chan struct{}),
	}
	h.ctx = &sessionContext{inner, h}
	until := sent.add(c.renewDeadline)
	h.until.Store(&until)
	k := &keeper{
		hold:    h,
		delays:  c.newDelays(),
		due:     sent.add(c.nextRenewal()),
		replies: make(chan reply, 1),
	}
	h.group.Go(func() error {
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
		h.lose(fmt.Errorf("%w: the clock jumped by %v (the machine slept?)", ErrLost, (awake - until.left(now)).Round(time.Millisecond)))
		return
	}
	h.lose(fmt.Errorf("%w: not renewed within %v", ErrLost, h.c.renewDeadline))
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

// end tells that the work is done.
func (h *hold) end() {
	h.cancel(ErrReleased)
	h.stopping.Do(func() { close(h.stop) })
}

// finish ends the session: cancel, wait, release. It returns nil once nothing is held any more. If
// the API server could not be told, it may be called again.
func (h *hold) finish() error {
	h.end()
	h.finishing.Lock()
	defer h.finishing.Unlock()
	h.group.Wait()
	if h.finished {
		return h.loss()
	}
	err := h.release()
	h.finished = err == nil || h.loss() != nil
	return err
}

// release frees the lease if it is still ours, in bounded time: not beyond the trust in it, because
// it runs out by itself then.
func (h *hold) release() error {
	c := h.c
	ctx, cancel := context.WithTimeout(context.WithoutCancel(h.ctx), c.clock.wait(c.renewDeadline/2))
	defer cancel()
	delays, inDoubt := c.newDelays(), false
	for {
		h.check()
		if err := h.loss(); err != nil {
			return err
		}
		r := c.feed.latest().record
		if err := h.term.judge(r, c.duration); err != nil {
			if inDoubt {
				return nil // an earlier try did it
			}
			h.lose(err)
			return err
		}
		_, err := c.write(ctx, "release", c.renewTimeout, func(ctx context.Context) (record, error) {
			return c.api.release(ctx, r)
		})
		if err == nil {
			c.log.Info("lease released", "fencingToken", h.token)
			return nil
		}
		inDoubt = inDoubt || unknownOutcome(err)
		sleep(ctx, c.clock, delays.next(err, h.left()))
		if ctx.Err() != nil {
			c.log.Warn("lease not released; it runs out by itself", "error", err)
			return err
		}
	}
}

// A keeper is the goroutine of a hold: it renews the lease until the body has returned, and finds
// out when it is lost.
type keeper struct {
	*hold
	delays   delays
	due      instant   // when to renew next
	pending  []renewal // the renewals that may have taken effect after the last one known to have
	inFlight bool
	replies  chan reply // has room for the one request under way
}

// A renewal is one try to renew.
type renewal struct {
	stamp time.Time // as it is written: no other renewal of the term has the same
	sent  instant   // when it was begun
}

type reply struct {
	record record
	err    error
}

// keep returns when the body has returned and no request is under way.
func (k *keeper) keep(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	stop, stopping := k.stop, false
	for {
		k.check()
		if k.loss() != nil {
			cancel()
			k.overrun(timer)
			return
		}
		now := k.c.clock.now()
		wake := k.until.Load().left(now)
		switch {
		case k.inFlight:
		case stopping:
			return
		case k.due.left(now) <= 0:
			k.renew(ctx, now)
		default:
			wake = min(wake, k.due.left(now))
		}
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
		case <-k.lost:
		case <-stop:
			stop, stopping = nil, true
		}
	}
}

// renew begins a renewal. Its time of sending is taken before anything else happens, because trust
// is counted from it.
func (k *keeper) renew(ctx context.Context, now instant) {
	r := k.c.feed.latest().record
	k.absorb(r)
	if k.loss() != nil {
		return
	}
	k.c.feed.expect(r.version)
	stamp := k.c.stamp(r)
	k.pending = append(k.pending, renewal{stamp, now})
	k.inFlight = true
	k.group.Go(func() error {
		answer, err := k.c.write(ctx, "renew", k.c.renewTimeout, func(ctx context.Context) (record, error) {
			if err := k.loss(); err != nil {
				return record{}, err
			}
			return k.c.api.renew(ctx, r, stamp)
		})
		k.replies <- reply{answer, err}
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
		return
	}
	// A renewal that was answered, but with another time than was sent, counts as failed.
	now := k.c.clock.now()
	// Leaves room for one more try, and for a few once there is none.
	limit := max(k.until.Load().left(now)-k.c.renewTimeout, k.c.renewTimeout/4)
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
	c.log.Warn("lease lost", "cause", k.loss(), "fencingToken", k.token)
	end := k.until.Load().add(c.duration - c.renewDeadline)
	timer.Reset(c.clock.wait(max(0, end.left(c.clock.now()))))
	select {
	case <-k.stop:
		return
	case <-timer.C:
	}
	select {
	case <-k.stop: // both at once, after a stall
	default:
		if k.given.Load() {
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
