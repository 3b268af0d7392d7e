package leasehold

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// A campaign is what one loop, or one call of Acquire, needs to compete for one lease: its parts, and how they begin
// and end together. All its goroutines read its fields, which do not change after newCampaign but for those that say
// who changes them.
//
//	candidate  waits for the lease and decides when to claim it, on the caller's goroutine
//	session    is one term: its renewer keeps it
//	reflector  follows the Lease
//	store      keeps what is known of it
type campaign struct {
	options *options
	ctx     context.Context // ends with the caller's, or when the program's code panics
	cancel  context.CancelCauseFunc

	user      *userCode
	log       *campaignLog
	stats     *leaseStats
	client    *sharedClient
	lease     *leaseClient
	store     *leaseStore
	reflector *reflector
	claims    *claims
	clock     clock

	// renewTimeout is for a write that keeps or frees the lease; three usual ones fit between a due renewal and the
	// renew deadline.
	renewTimeout   requestTimeout
	acquireTimeout requestTimeout // of a read, or a write that acquires the lease
	renewDelays    *delays        // of the renewer
	releaseDelays  *delays        // of the release

	started time.Time
	current atomic.Pointer[session] // from when it was acquired until it has ended; nil between them
	closed  atomic.Bool             // this campaign does not count as a user of the client any more

	registered bool     // this candidate stands by on the Lease, or did; on the caller's goroutine
	remembered leaseKey // of the Lease in the process's memory; set by TryAcquire before there is a session

	strays sync.WaitGroup // frees what claims in doubt acquired in other slots, beside a session of this one

	// claimsFailingSince is since when claims have failed although nothing happened to the Lease; nil while
	// that is not so.
	claimsFailingSince atomic.Pointer[time.Time]
}

// newCampaign prepares to campaign for the lease that o names, beside first, the campaign for the first slot; nil where
// there is none. It makes no request yet; start does.
func newCampaign(ctx context.Context, o *options, first *campaign) (*campaign, error) {
	namespace, config, err := o.locate()
	if err != nil {
		return nil, fmt.Errorf("leasehold: no usable client configuration: %w", err)
	}
	client, err := openClient(o.client, config, o.renewInterval)
	if err != nil {
		return nil, fmt.Errorf("leasehold: no usable client configuration: %w", err)
	}
	made := false
	defer func() {
		if !made { // the program's code, such as the function of WithBackOff, panicked
			client.close(true)
		}
	}()
	if client.leasesIn(namespace) == nil {
		return nil, fmt.Errorf("leasehold: no usable client configuration: the client has no Leases in namespace %q",
			namespace)
	}
	c := &campaign{
		options:        o,
		client:         client,
		clock:          o.hooks.clock,
		claims:         &claims{stamps: timestamps{chance: o.hooks.chance}},
		renewTimeout:   client.timeout(o, (o.renewDeadline-o.renewInterval)/4),
		acquireTimeout: client.timeout(o, o.renewDeadline/3),
		started:        time.Now(),
	}
	identity, changedAny := o.identity, wakeup(nil)
	if first != nil {
		c.user, identity, changedAny = first.user, first.lease.identity, first.store.changedAny
	} else {
		c.user = &userCode{clock: c.clock, abort: func(p *userPanic) { c.cancel(p) }}
		if identity == "" {
			identity = newIdentity()
		}
		if o.slots > 1 {
			changedAny = newWakeup()
		}
	}
	c.lease = newLeaseClient(o, client, c.user, namespace, identity)
	c.log = &campaignLog{c.user, o.log, []slog.Attr{
		slog.String("lease", namespace+"/"+o.name), slog.String("identity", identity),
	}}
	c.renewDelays, c.releaseDelays = newDelays(o.newBackOff, c.user), newDelays(o.newBackOff, c.user)
	c.store = newLeaseStore(c.lease, c.claims.include, changedAny)
	c.reflector = newReflector(o, client, c.lease, c.store, c.log, c.acquireTimeout)
	if first != nil {
		c.ctx, c.cancel = first.ctx, first.cancel
	} else {
		c.ctx, c.cancel = context.WithCancelCause(ctx)
	}
	c.stats = o.monitor.open(c)
	c.lease.failures = &failureLog{log: c.log, failing: &client.failing, stats: c.stats, recent: o.duration}
	made = true
	return c, nil
}

// start begins to follow the Lease.
func (c *campaign) start() { c.reflector.start(c.ctx, c.client.subscribe(c.reflector, c.options)) }

// errUnanswered is why a lease may be acquired although a read does not show that.
var errUnanswered = errors.New("a claim without an answer may still take effect")

// resolveDoubt looks whether a claim whose outcome is unknown acquired the lease, and frees it then. It warns where
// the lease may be held, or will be, for nobody.
func (c *campaign) resolveDoubt() {
	doubts := c.claims.inDoubt()
	if doubts == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), c.clock.wait(c.acquireTimeout.current()))
	defer cancel()
	_, err := c.reflector.read(ctx)
	if err == nil {
		err = c.freeInDoubt(ctx, doubts)
	}
	if latest := c.store.latest(); err == errNotOurs {
		c.claims.forget(latest, c.clock.now().mono, true)
		err = nil
		if c.claims.unanswered(latest) {
			err = errUnanswered
		}
	}
	if err != nil {
		c.log.warn("lease perhaps not released; if it was acquired, it will expire", "error", err)
	}
	c.claims.clearDoubt()
}

// freeInDoubt frees the lease if it shows one of the terms in doubts.
func (c *campaign) freeInDoubt(ctx context.Context, doubts []term) error {
	return c.free(ctx, "", func(r record) error {
		for _, t := range doubts {
			if r.term().is(t) {
				return nil
			}
		}
		return errNotOurs
	})
}

// renewalOverdueAt returns by when the holder in o will have renewed the lease if it lives.
func (c *campaign) renewalOverdueAt(o observation) time.Time {
	return o.since.Add(c.options.between(o.wait/10*6, o.wait/10*7))
}

// write makes a request of a kind that keeps or frees the lease, and records what the Lease is then. The caller has
// a permit, or needs none, also for the read that this may take: a holder must not wait for it behind others.
func (c *campaign) write(
	ctx context.Context, kind string, request func(context.Context) (record, error),
) (record, error) {
	before := c.store.latest()
	r, err := c.lease.request(ctx, kind, c.renewTimeout.current(), request)
	c.recordWrite(ctx, before, r, err)
	return r, err
}

// recordWrite records what the Lease is after a write that ended with r and err, and was sent when before was known.
// After a conflict it reads.
func (c *campaign) recordWrite(ctx context.Context, before observation, r record, err error) {
	switch {
	case err == nil:
		c.store.addAnswer(r, before)
	case conflicts(err):
		c.reflector.readPermitted(ctx) // logs its own failure
	}
}

// holder returns the Holder that r shows, whose lease expires at expiry.
func (c *campaign) holder(r record, expiry time.Time) Holder {
	return Holder{
		Namespace:   c.lease.namespace,
		Name:        c.lease.name,
		Identity:    r.identity,
		AcquireTime: r.acquired,
		RenewTime:   r.renewed,
		Duration:    r.duration,
		Transitions: r.transitions,
		ExpiryTime:  expiry,
		Address:     r.notes().Address,
	}
}

// campaigns are those of one loop, or of one call of Acquire: one or, with WithSlots, one for each slot. Those of
// several slots have a context, an identity, and what runs the program's code in common.
type campaigns []*campaign

// newCampaigns prepares to campaign. It makes no request yet; start does.
func newCampaigns(ctx context.Context, o *options) (campaigns, error) {
	if o.slots == 0 {
		c, err := newCampaign(ctx, o, nil)
		if err != nil {
			return nil, err
		}
		return campaigns{c}, nil
	}
	var cs campaigns
	made := false
	defer func() {
		if !made {
			cs.close()
		}
	}()
	var first *campaign
	for slot := range o.slots {
		c, err := newCampaign(ctx, o.forSlot(slot), first)
		if err != nil {
			return nil, err
		}
		if first == nil {
			first = c
		}
		cs = append(cs, c)
	}
	made = true
	return cs, nil
}

// start begins to follow the Leases.
func (cs campaigns) start() {
	for _, c := range cs {
		c.start()
	}
}

// close ends the campaigns: nothing that they started is left. A claim that acquired a lease unheard of is released.
// It may be called again after another request was made.
func (cs campaigns) close() {
	for _, c := range cs {
		c.strays.Wait()
		c.unregister()
		c.resolveDoubt()
		c.reflector.close()
		c.lease.failures.close()
	}
	if len(cs) > 0 {
		cs[0].user.wait()
	}
	for _, c := range cs {
		c.client.close(!c.closed.Swap(true))
		c.stats.close(c)
		c.cancel(nil)
	}
}

// ctx returns the context of the campaigns, which ends with the caller's, or when the program's code panics.
func (cs campaigns) ctx() context.Context { return cs[0].ctx }

// repanic goes on with a panic of the program's code that ended the campaigns.
func (cs campaigns) repanic() { cs[0].user.repanic() }

// news returns the channel that is ready to receive from when there is news of any of the Leases.
func (cs campaigns) news() <-chan struct{} {
	if len(cs) == 1 {
		return cs[0].store.changed
	}
	return cs[0].store.changedAny
}
