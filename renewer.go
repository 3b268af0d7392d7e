package leasehold

import (
	"cmp"
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// A renewer keeps the term of a session: it renews the lease until the body has returned, and finds out when it is
// lost. It has no goroutine of its own but for a renewal under way. Whatever happens to the session is followed by a
// step, which looks at all of it, never blocks, and sets a timer for the next step. One that does not follow by itself
// is asked for by stepSoon.
type renewer struct {
	session   *session
	clock     clock
	lease     *leaseClient
	store     *leaseStore
	reflector *reflector
	delays    *delays         // owned by a step or, while planning is set, by the goroutine that asks them
	ctx       context.Context // of the renewals; ends when the lease is lost
	cancel    context.CancelFunc

	wanted  atomic.Bool   // the next renewal is to come sooner, because there is something to tell by it
	stepDue atomic.Bool   // a step is about to begin
	ended   chan struct{} // closed when the stage is over

	mu       sync.Mutex // protects following; taken before all other locks of the campaign
	stage    stage
	timer    *time.Timer // calls step
	due      instant     // when to renew next
	last     instant     // when the last write was sent
	before   uint64      // the version that the last renewal was based on
	pending  []renewal   // sent after the last known to have taken effect, refused ones too: a later match drops them
	flight   *flight     // the renewal under way; nil for none
	planning bool        // a BackOff of the program's is asked when the next one is due
	// restart says that a renewal took effect: the delays begin with the shortest at the next failure. It is set here
	// because a planning goroutine may own delays.
	restart bool
	beat    beatCheck

	// requests runs the renewal under way, and plans. One that was given up stays behind in the group that it was in.
	requests *errgroup.Group
}

// A stage is what a renewer does.
type stage int

const (
	renewing  stage = iota // until the body has returned, or the lease is lost
	awaiting               // the lease is lost: waits for the body
	overtaken              // waits for the function of WithOverrun, because the body goes on without the lease
	over
)

// A renewal is one try to renew.
type renewal struct {
	stamp time.Time // as it is written: no other renewal of the term has the same
	sent  instant   // when it was begun
}

// A flight is a renewal under way.
type flight struct {
	renewal
	known  observation // what it is based on
	limit  time.Time   // by the monotonic clock: when it is given up
	cancel context.CancelFunc

	// ended is set once the renewal was answered or given up. The first to set it decides the outcome; the read after
	// a conflict may still be under way.
	ended atomic.Bool
	reply *reply // nil until there is one; protected by the renewer's mutex
}

type reply struct {
	record record
	err    error
	sent   instant
}

// newRenewer returns a renewer of the term of s, which was acquired by a write sent at sent.
func newRenewer(ctx context.Context, s *session, sent instant) *renewer {
	c := s.campaign
	r := &renewer{
		session:   s,
		clock:     c.clock,
		lease:     c.lease,
		store:     c.store,
		reflector: c.reflector,
		delays:    c.renewDelays,
		due:       sent.add(firstRenewal(c.options)),
		last:      sent,
		beat:      beatCheck{limit: c.options.beat, heard: sent.mono},
		ended:     make(chan struct{}),
		restart:   true,
		requests:  &errgroup.Group{},
	}
	r.ctx, r.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return r
}

// start begins to renew.
func (r *renewer) start() {
	r.store.setRenewer(r)
	r.step()
}

// wait returns when the body has returned and no renewal is under way, or when the lease is lost and that was reported.
func (r *renewer) wait() {
	<-r.ended
	r.requests.Wait()
}

// firstRenewal returns how long after the start of the write that acquired the lease it is first renewed.
// Leases that were acquired together, as by a standby of a process with many, are not renewed together.
func firstRenewal(o *options) time.Duration { return o.between(o.renewInterval/4, o.renewInterval) }

// nextRenewal returns how long after the start of a renewal the next one begins. Chance keeps the
// renewals of many leases from coming all at once.
func nextRenewal(o *options) time.Duration { return o.between(o.renewInterval*9/10, o.renewInterval) }

// stepSoon makes a step begin after what has just happened, on another goroutine. It never waits.
func (r *renewer) stepSoon() {
	if !r.stepDue.Swap(true) {
		go r.step()
	}
}

// step does what is to be done now.
func (r *renewer) step() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stepLocked()
}

func (r *renewer) stepLocked() {
	r.stepDue.Swap(false) // before anything is looked at
	if r.stage == over {
		return
	}
	wake := maxDuration
	if r.stage == renewing {
		wake = r.keepLocked()
	}
	if r.stage == awaiting {
		wake = r.awaitBodyLocked()
	}
	if r.stage == over {
		r.endLocked()
		return
	}
	wake = r.clock.wait(max(wake, 0))
	if r.timer == nil {
		r.timer = time.AfterFunc(wake, r.step)
	} else {
		r.timer.Reset(wake)
	}
}

// endLocked ends the renewer.
func (r *renewer) endLocked() {
	r.cancel()
	r.stopTimerLocked()
	r.store.setRenewer(nil)
	close(r.ended)
}

func (r *renewer) stopTimerLocked() {
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
}

// keepLocked keeps the lease, and returns how long it has to do nothing for that.
func (r *renewer) keepLocked() time.Duration {
	s := r.session
	s.checkTrust() // first: trust that has ended is not revived by what came since
	if reply := r.takeReplyLocked(); reply != nil {
		r.handleReplyLocked(reply)
	} else {
		r.absorbLatestLocked()
	}
	now := r.clock.now()
	untilBeatCheck, stuck := r.beat.check(s, now.mono)
	done := s.workDone()
	if stuck && !done {
		s.lose(lostBecause(stalled, "the work did not call Beat for %v", r.beat.limit))
	}
	if r.idleLocked() && !done && s.loss() == nil && r.untilRenewalLocked(now) <= 0 {
		r.renewLocked(now)
	}
	wake := min(s.until.Load().left(now), untilBeatCheck, r.untilLimitLocked(now))
	switch {
	case s.loss() != nil:
		r.stage = awaiting
		r.cancel()
		r.store.setRenewer(nil) // what is new does not matter any more
		if f := r.flight; f != nil {
			f.limit = earlier(f.limit, now.mono.Add(answerGrace))
		}
		s.logLoss()
	case done && r.flight == nil:
		r.stage = over
	case r.idleLocked():
		wake = min(wake, r.untilRenewalLocked(now))
	}
	return wake
}

// idleLocked reports whether a renewal may begin.
func (r *renewer) idleLocked() bool { return r.flight == nil && !r.planning }

// awaitBodyLocked waits for the body to return, after a loss. If it does not before the lease may be another's by the
// clock alone, the function of WithOverrun is called. It returns how long there is nothing to do for that.
func (r *renewer) awaitBodyLocked() time.Duration {
	s, now := r.session, r.clock.now()
	r.takeReplyLocked()
	o := s.campaign.options
	left := s.until.Load().add(o.duration - o.renewDeadline).left(now)
	switch {
	case r.flight != nil:
		return r.untilLimitLocked(now)
	case s.workDone(): // even if the lease expired at the same time, after a stall
		r.stage = over
	case left > 0:
		return left
	case !s.delivered.Load():
		r.stage = over
	default:
		s.overran.Store(true)
		r.stage = overtaken
		if !s.callOverrun(r.overrunReturned) {
			r.stage = over
		}
	}
	return maxDuration
}

// overrunReturned says that the function of WithOverrun has returned.
func (r *renewer) overrunReturned() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stage = over
	r.endLocked()
}

// untilRenewalLocked returns how long to wait before the next renewal. Those that are wanted sooner are some time
// apart, so that one of them tells what many have to tell; none comes before the pause is over that follows one that
// failed.
func (r *renewer) untilRenewalLocked(now instant) time.Duration {
	wait := r.due.left(now)
	if r.wanted.Load() && len(r.pending) == 0 {
		wait = min(wait, r.last.add(gathering(r.session.campaign.options)).left(now))
	}
	return wait
}

// gathering returns for how long what is to be written is gathered for one write.
func gathering(o *options) time.Duration {
	return min(max(o.renewInterval/30, time.Millisecond), 100*time.Millisecond)
}

// renewLocked begins a renewal. Its time of sending, now, was taken before anything else happens, because trust is
// counted from it.
func (r *renewer) renewLocked(now instant) {
	s, known := r.session, r.store.latest()
	if r.absorbLocked(&known.record); s.loss() != nil {
		return
	}
	r.reflector.requestCheckUnlessHeard(r.versionDueLocked(&known, now))
	stamp := s.campaign.claims.stamps.forRenewal(known.record)
	timeout := s.campaign.renewTimeout.current()
	ctx, cancel := context.WithTimeout(r.ctx, r.clock.wait(timeout))
	f := &flight{renewal: renewal{stamp, now}, known: known, limit: now.mono.Add(timeout + answerGrace), cancel: cancel}
	r.pending = append(r.pending, f.renewal)
	r.flight, r.last = f, now
	r.wanted.Store(false) // before what it tells is gathered
	send, err := newRequest(s.campaign.user, "renew", timeout, func() (record, error) {
		s.checkTrust() // which may have ended since the step
		if err := s.loss(); err != nil {
			return record{}, err
		}
		return r.lease.renew(ctx, f.known.record, stamp)
	}, func(rec record, err error) { r.recordReply(f, rec, err) })
	if err != nil {
		cancel()
		r.flight = nil
		r.lease.failures.record("renew", err)
		r.handleReplyLocked(&reply{err: err, sent: now})
		return
	}
	r.requests.Go(func() error {
		send()
		return nil
	})
}

// recordReply records how the renewal f ended. One that was given up ended before.
func (r *renewer) recordReply(f *flight, rec record, err error) {
	f.cancel()
	if f.ended.Swap(true) {
		return
	}
	defer r.lease.failures.record("renew", err)
	if err == nil {
		r.stepDue.Store(true) // A step counts as due, so that addAnswer starts none: stepLocked below does it.
	}
	r.session.campaign.recordWrite(r.ctx, f.known, rec, err)
	r.mu.Lock()
	defer r.mu.Unlock()
	f.reply = &reply{rec, err, f.sent}
	r.stepLocked()
}

// takeReplyLocked returns how the renewal under way ended; nil if it has not, or if there is none. One that did not end
// with its context is given up.
func (r *renewer) takeReplyLocked() *reply {
	f := r.flight
	if f == nil {
		return nil
	}
	if r.untilLimitLocked(r.clock.now()) <= 0 && !f.ended.Swap(true) {
		f.cancel()
		err := noAnswer("renew", cmp.Or(r.ctx.Err(), context.DeadlineExceeded))
		r.lease.failures.record("renew", err)
		f.reply = &reply{err: err, sent: f.sent}
		r.requests = &errgroup.Group{}
	}
	if f.reply == nil {
		return nil
	}
	r.flight = nil
	r.stopTimerLocked() // another one is made, for the reason of freshTimer
	return f.reply
}

// untilLimitLocked returns how long to wait before the renewal under way is given up.
func (r *renewer) untilLimitLocked(now instant) time.Duration {
	if f := r.flight; f != nil && !f.ended.Load() {
		return f.limit.Sub(now.mono)
	}
	return maxDuration
}

// versionDueLocked returns the version that a watch has brought by now, if it lives. Where a round trip takes as long
// as the renew interval, what was just answered may still be on its way.
func (r *renewer) versionDueLocked(known *observation, now instant) uint64 {
	before := r.before
	r.before = known.version
	if now.mono.Sub(known.since) < watchLag {
		return before
	}
	return known.version
}

// handleReplyLocked plans the next renewal by how the last one ended. One that took effect has not failed, even if its
// reply was lost. One that was answered, but with another time than was sent, counts as failed. After a success
// absorbLocked has set due; this only postpones after a failure.
func (r *renewer) handleReplyLocked(reply *reply) {
	s := r.session
	if reply.err == nil {
		r.absorbLocked(&reply.record)
	}
	r.absorbLatestLocked()
	if len(r.pending) == 0 {
		if reply.err == nil {
			s.campaign.stats.renewed(-reply.sent.left(r.clock.now()))
		}
		return
	}
	if reply.err == nil && s.loss() == nil {
		r.reportAlteredLocked()
	}
	now := r.clock.now()
	// The delay leaves time for one more try before trust ends; where there is none, the tries are close together.
	timeout := s.campaign.renewTimeout
	limit := max(s.until.Load().left(now)-timeout.current(), timeout.least/4)
	if r.restart {
		r.delays.reset()
		r.restart = false
	}
	if !r.delays.mayWait() {
		r.postponeLocked(r.delays.next(reply.err, limit))
		return
	}
	r.planning = true
	r.requests.Go(func() error {
		delay := r.delays.next(reply.err, limit)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.planning = false
		r.postponeLocked(delay)
		r.stepLocked()
		return nil
	})
}

// postponeLocked puts the next renewal off by delay, unless a renewal has taken effect after all.
func (r *renewer) postponeLocked(delay time.Duration) {
	if now := r.clock.now(); len(r.pending) > 0 && r.due.left(now) < delay {
		r.due = now.add(delay)
	}
}

// reportAlteredLocked logs, once in a row, that renewals succeed but are not stored as they were sent.
func (r *renewer) reportAlteredLocked() {
	s := r.session
	if !s.altered.Swap(true) {
		s.campaign.log.warn("lease renewed, but the API server stored another renewTime than was sent: " +
			"an admission webhook or policy changes it; retrying")
	}
}

// absorbLatestLocked draws conclusions from the newest record.
func (r *renewer) absorbLatestLocked() {
	if latest := r.store.latest(); latest.known {
		r.absorbLocked(&latest.record)
	}
}

// absorbLocked draws conclusions from what the Lease says: that another has it, or that a renewal took effect, even
// one whose reply never came.
func (r *renewer) absorbLocked(rec *record) {
	s := r.session
	if s.loss() != nil {
		return
	}
	if err := s.term.over(rec, r.lease.duration); err != nil {
		s.lose(err)
		return
	}
	s.heed(rec)
	for i, p := range r.pending {
		if p.stamp == rec.renewed {
			until := p.sent.add(s.campaign.options.renewDeadline)
			s.until.Store(&until)
			s.altered.Store(false)
			r.restart = true
			r.due = p.sent.add(nextRenewal(s.campaign.options))
			r.pending = append(r.pending[:0], r.pending[i+1:]...)
			s.renewed.signal()
			return
		}
	}
}

// renewSoon asks for a renewal before the next one is due, because it has something to tell.
func (s *session) renewSoon() {
	s.renewer.wanted.Store(true)
	s.renewer.stepSoon()
}
