package leasehold

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/leasehold-go/leasehold/internal/annotation"
)

// WithPriority makes this candidate the next to hold the lease, before all that have a lower priority or none, if it
// stands by when the lease is released. It never takes a lease that is held. Any int is valid; without
// WithPriority a holder has 0, and a standby is not preferred to others.
//
// A standby registers on the Lease, in one write, unless a better one, or one that is as good, has registered since the
// holder acquired the lease. The release names it, and others leave the lease to it for half of the renew interval, at
// most a second. One that does not come in that time is forgotten. A lease that expires is taken by any candidate.
// Holders and candidates that know nothing of this, such as client-go's, lead and compete as if nobody had a priority.
//
// WithSlots excludes WithPriority.
func WithPriority(p int) Option {
	return func(o *options) { o.priority, o.prioritized = p, true }
}

// WithYield ends a session when a candidate of higher priority stands by (WithPriority): its context is cancelled with
// ErrYielded, and once the work has ended the lease is released, to that candidate.
//
// Without it a session still ends so when somebody asks for that by name: leasehold handover, or a preferredHolder in
// the Lease, which coordinated leader election (KEP-4355) writes.
func WithYield() Option { return func(o *options) { o.yield = true } }

// HandOver releases the lease, for the candidate with that identity: others leave it the lease for half of the renew
// interval, at most a second. If it does not stand by, any of them acquires the lease then. An identity of more than
// 1024 bytes is left out: any candidate acquires the lease at once. For a key of a group it does what Release does.
func (s Session) HandOver(identity string) error {
	one, ok := s.state.(*session)
	if !ok {
		return s.Release()
	}
	one.successor.Store(&identity)
	return one.release()
}

// standbyPriority returns the priority; nil if there is none.
func (o *options) standbyPriority() *int {
	if !o.prioritized {
		return nil
	}
	return &o.priority
}

// successorGrace is how long candidates leave a released lease to the one that the release names.
func successorGrace(o *options) time.Duration { return min(o.renewInterval/2, time.Second) }

// heed ends the session's context if r, which shows its term, asks for that. The lease is kept until the work has
// ended. A member of a group heeds nobody: no other process could use its Lease, and the table says which keys it owns.
func (s *session) heed(r *record) {
	if s.campaign.lease.ofMember() {
		return
	}
	identity, why := s.askedBy(r)
	if why == "" {
		return
	}
	s.successor.CompareAndSwap(nil, new(identity))
	if s.ctx.Context.Err() != nil {
		return // the work winds down as it is
	}
	s.cancel(fmt.Errorf("%w: %s", ErrYielded, why))
	s.campaign.stats.yielded()
	s.campaign.log.info("lease is to be released once the work has ended",
		"cause", context.Cause(s.ctx), "fencingToken", s.token)
}

// askedBy returns why the session is to end by what r says, "" if it is not, and who is to have the lease next.
func (s *session) askedBy(r *record) (identity, why string) {
	c, n, standby := s.campaign, r.notes(), r.notes().Standby
	own := c.lease.identity
	switch {
	case n.Asked && n.AskedTo == "":
		return standby.Identity, "asked to hand over the lease"
	case n.Asked && n.AskedTo != own:
		return n.AskedTo, fmt.Sprintf("asked to hand over the lease to %q", n.AskedTo)
	case r.preferred != "" && r.preferred != own:
		return r.preferred, fmt.Sprintf("the Lease prefers the holder %q", r.preferred)
	case !c.options.yield || standby.Identity == "" || standby.Identity == own:
	case standby.Priority > c.options.priority:
		return standby.Identity, fmt.Sprintf("to %q, which has priority %d over %d",
			standby.Identity, standby.Priority, c.options.priority)
	}
	return "", ""
}

// named returns the candidate that the session is to be followed by, "" if the Lease is to decide.
func (s *session) named() string {
	if identity := s.successor.Load(); identity != nil {
		return *identity
	}
	return ""
}

// nextHolder returns who a release of the lease as it is in r names: named or, if that is "", who stands by. Nobody
// reads a long name, and one that is too long for the Lease would keep it from being released.
func (r record) nextHolder(named string) string {
	if next := cmp.Or(named, r.notes().Standby.Identity); next != r.identity && len(next) <= longestIdentity {
		return next
	}
	return ""
}

// longestIdentity is that of a candidate that can register, and that a release can name.
const longestIdentity = annotation.MaxLength

// outranks reports whether the candidate is to register for the lease as it is in o.
func (c *candidate) outranks(o observation) bool {
	options, own, standby := c.campaign.options, c.campaign.lease.identity, o.notes().Standby
	if !options.prioritized || !o.held() || o.acquired.IsZero() || o.identity == own || len(own) > longestIdentity {
		return false
	}
	return standby.Identity == "" || standby.Priority < options.priority
}

// register says on the Lease, if it still is as in o, that the candidate stands by with its priority. A write that
// meets with another is planned again when the watch brings that one.
func (c *candidate) register(ctx context.Context, o observation) {
	c.attempt.register = time.Time{}
	done, err := c.campaign.client.permit(ctx)
	if err != nil {
		return
	}
	defer done()
	if !c.campaign.store.unchangedSince(o) {
		return
	}
	value := annotation.FormatStandby(o.acquired, annotation.Candidate{
		Identity: c.campaign.lease.identity, Priority: c.campaign.options.priority,
	})
	err = c.campaign.standBy(ctx, o, &value)
	switch {
	case err == nil, outcomeUnknown(err):
		c.campaign.registered = true // perhaps: what the Lease says decides when it is to be removed
	}
	switch {
	case err == nil:
	case !conflicts(err):
		c.attempt.register = c.campaign.clock.now().mono.Add(c.campaign.options.renewInterval)
	}
}

// standBy sets who stands by on the Lease, if it still is as in o; nil removes it.
func (c *campaign) standBy(ctx context.Context, o observation, standby *string) error {
	r, err := c.lease.request(ctx, "stand by", c.renewTimeout.current(), func(ctx context.Context) (record, error) {
		return c.lease.patch(ctx, o.record, map[string]*string{annotation.Standby: standby}, nil)
	})
	if err == nil {
		c.store.addAnswer(r, o)
	}
	return err
}

// unregister removes what register wrote, so that no release waits for a candidate that has left.
func (c *campaign) unregister() {
	o := c.store.latest()
	if !c.registered || !o.held() || o.notes().Standby.Identity != c.lease.identity || c.claims.include(o.term()) {
		return
	}
	c.registered = false
	c.standBy(context.WithoutCancel(c.ctx), o, nil) // logs its own failure
}
