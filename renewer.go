package leasehold

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"
)

// A renewer keeps the term of a session: it renews the lease until the body has returned, and finds out when it is
// lost. Its goroutine, run, owns its fields; others only wait for ended and flight, ask by request, and reply.
type renewer struct {
	session   *session
	clock     clock
	lease     *leaseClient
	store     *leaseStore
	reflector *reflector
	delays    *delays

	due      instant   // when to renew next
	last     instant   // when the last write was sent
	wanted   bool      // the next renewal is to come sooner, because there is something to tell by it
	before   uint64    // the version that the last renewal was based on
	pending  []renewal // those sent after the last one that is known to have taken effect
	inFlight bool      // a renewal is under way
	beat     beatCheck
	replies  chan reply

	request wakeup // a renewal is wanted

	group  errgroup.Group // run, and the renewal under way
	ended  chan struct{}  // closed when run has returned
	flight chan struct{}  // has room for the renewal under way
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

// startRenewer starts to renew the term of s, which was acquired by a write sent at sent.
func startRenewer(ctx context.Context, s *session, sent instant) *renewer {
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
		request:   newWakeup(),
		beat:      beatCheck{limit: c.options.beat, heard: sent.mono},
		replies:   make(chan reply, 1),
		ended:     make(chan struct{}),
		flight:    make(chan struct{}, 1),
	}
	r.delays.reset()
	r.group.Go(func() error {
		defer close(r.ended)
		r.run(context.WithoutCancel(ctx))
		return nil
	})
	return r
}

// firstRenewal returns how long after the start of the write that acquired the lease it is first renewed.
// Leases that were acquired together, as by a standby of a process with many, are not renewed together.
func firstRenewal(o *options) time.Duration { return o.between(o.renewInterval/4, o.renewInterval) }

// nextRenewal returns how long after the start of a renewal the next one begins. Chance keeps the
// renewals of many leases from coming all at once.
func nextRenewal(o *options) time.Duration { return o.between(o.renewInterval*9/10, o.renewInterval) }

// run returns when the body has returned and no renewal is under way, or when the lease is lost and that was
// reported.
func (r *renewer) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	timer := time.NewTimer(0)
	defer func() { timer.Stop() }()
	s := r.session
	stop, stopping := s.stop, false
	for {
		if s.checkTrust(); s.loss() != nil {
			cancel()
			r.reportLoss(timer)
			return
		}
		now := r.clock.now()
		look, stuck := r.beat.look(s, now.mono)
		if stuck && !stopping {
			s.lose(lostBecause(stalled, "the work did not call Beat for %v", r.beat.limit))
			continue
		}
		wake := min(s.until.Load().left(now), look)
		switch {
		case r.inFlight:
		case stopping:
			return
		case r.untilRenewal(now) <= 0:
			r.renew(ctx, now)
		default:
			wake = min(wake, r.untilRenewal(now))
		}
		timer.Reset(r.clock.wait(max(wake, 0)))
		select {
		case <-timer.C:
		case <-r.store.changed:
			s.checkTrust()
			r.absorbLatest()
		case reply := <-r.replies:
			r.inFlight = false
			s.checkTrust()
			r.handleReply(&reply)
			timer = freshTimer(timer)
		case <-s.lost:
		case <-r.request:
			r.wanted = true
		case <-stop:
			stop, stopping = nil, true
		}
	}
}

// untilRenewal returns how long to wait before the next renewal. Those that are wanted sooner are some time apart, so
// that one of them tells what many have to tell.
func (r *renewer) untilRenewal(now instant) time.Duration {
	wait := r.due.left(now)
	if r.wanted {
		wait = min(wait, r.last.add(gathering(r.session.campaign.options)).left(now))
	}
	return wait
}

// gathering returns for how long what is to be written is gathered for one write.
func gathering(o *options) time.Duration {
	return min(max(o.renewInterval/30, time.Millisecond), 100*time.Millisecond)
}

// renew begins a renewal. Its time of sending, now, was taken before anything else happens, because trust is
// counted from it.
func (r *renewer) renew(ctx context.Context, now instant) {
	s, known := r.session, r.store.latest()
	on := known.record
	if r.absorb(&on); s.loss() != nil {
		return
	}
	r.reflector.requestCheckUnlessHeard(r.versionDue(&known, now))
	stamp := s.campaign.claims.stamps.forRenewal(on)
	r.pending = append(r.pending, renewal{stamp, now})
	r.inFlight, r.wanted, r.last = true, false, now
	r.flight <- struct{}{}
	r.group.Go(func() error {
		defer func() { <-r.flight }()
		answer, err := s.campaign.write(ctx, "renew", func(ctx context.Context) (record, error) {
			if err := s.loss(); err != nil {
				return record{}, err
			}
			return r.lease.renew(ctx, on, stamp)
		})
		r.replies <- reply{answer, err, now}
		return nil
	})
}

// versionDue returns the version that a watch has brought by now, if it lives. Where a round trip takes as long as the
// renew interval, what was just answered may still be on its way.
func (r *renewer) versionDue(known *observation, now instant) uint64 {
	before := r.before
	r.before = known.version
	if now.mono.Sub(known.since) < watchLag {
		return before
	}
	return known.version
}

// handleReply plans the next renewal by how the last one ended. One that took effect has not failed, even if its reply
// was lost. One that was answered, but with another time than was sent, counts as failed.
func (r *renewer) handleReply(reply *reply) {
	s := r.session
	if reply.err == nil {
		r.absorb(&reply.record)
	}
	r.absorbLatest()
	if len(r.pending) == 0 {
		if reply.err == nil {
			s.campaign.stats.renewed(-reply.sent.left(r.clock.now()))
		}
		return
	}
	if reply.err == nil && s.loss() == nil {
		r.reportAltered()
	}
	now := r.clock.now()
	// The delay leaves time for one more try before trust ends; where there is none, the tries are close together.
	timeout := s.campaign.renewTimeout
	limit := max(s.until.Load().left(now)-timeout.current(), timeout.least/4)
	if delay := r.delays.next(reply.err, limit); r.due.left(now) < delay {
		r.due = now.add(delay)
	}
}

// reportAltered logs, once in a row, that renewals succeed but are not stored as they were sent.
func (r *renewer) reportAltered() {
	s := r.session
	if !s.altered.Swap(true) {
		s.campaign.log.warn("lease renewed, but the API server stored another renewTime than was sent: " +
			"an admission webhook or policy changes it; retrying")
	}
}

// absorbLatest is absorb for the newest record.
func (r *renewer) absorbLatest() {
	latest := r.store.latest()
	r.absorb(&latest.record)
}

// absorb draws conclusions from what the Lease says: that another has it, or that a renewal took effect, even
// one whose reply never came. Records are passed by their addresses here, so that the stack of a renewer, of which
// there may be thousands, stays at 4 kB.
func (r *renewer) absorb(rec *record) {
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
			r.delays.reset()
			r.due = p.sent.add(nextRenewal(s.campaign.options))
			r.pending = append(r.pending[:0], r.pending[i+1:]...)
			s.renewed.signal()
			return
		}
	}
}

// reportLoss logs the loss and waits for the body to return. If it does not before the lease may be another's by
// the clock alone, the function of WithOverrun is called, and waited for.
func (r *renewer) reportLoss(timer *time.Timer) {
	s := r.session
	s.logLoss()
	o := s.campaign.options
	end := s.until.Load().add(o.duration - o.renewDeadline)
	timer.Reset(r.clock.wait(max(0, end.left(r.clock.now()))))
	select {
	case <-s.stop:
		return
	case <-timer.C:
	}
	select {
	case <-s.stop: // even if both came at once, after a stall
		return
	default:
	}
	if s.yielded.Load() {
		s.overran.Store(true)
		s.callOverrun()
	}
}

// awaitRenewal waits for the renewal under way of a lost lease, which is cut short, but not for long if that does
// not help.
func (r *renewer) awaitRenewal() {
	timer := time.NewTimer(r.clock.wait(r.session.campaign.renewTimeout.current()))
	defer timer.Stop()
	select {
	case r.flight <- struct{}{}:
		<-r.flight
	case <-timer.C:
	}
}

// renewSoon asks for a renewal before the next one is due, because it has something to tell.
func (s *session) renewSoon() { s.renewer.request.signal() }
