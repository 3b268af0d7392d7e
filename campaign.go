package leasehold

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// A campaign is what one loop, or one call of Acquire, needs to compete for one lease: its parts, and how they begin
// and end together. All its goroutines read its fields, which do not change after newCampaign but for those that say
// who changes them.
//
//	candidate  waits for the lease and decides when to claim it, on the caller's goroutine
//	session    is one term: its renewer keeps it, on a goroutine of its own
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

	renewTimeout   requestTimeout // of a write that keeps or frees the lease; three of the usual ones fit
	acquireTimeout requestTimeout // of a read, or a write that acquires the lease
	renewDelays    *delays        // of the renewer
	releaseDelays  *delays        // of the release

	started time.Time
	current atomic.Pointer[session] // from when it was acquired until it has ended; nil between them
	closed  atomic.Bool             // its user of the client is gone

	registered bool // this candidate stands by on the Lease, or did; on the caller's goroutine

	strays errgroup.Group // frees what claims in doubt acquired in other slots, beside a session of this one

	// stalledSince is since when claims have failed although nothing happened to the Lease; nil while
	// that is not so.
	stalledSince atomic.Pointer[time.Time]
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
	c := &campaign{
		options:        o,
		client:         client,
		clock:          o.hooks.clock,
		claims:         &claims{stamps: timestamps{chance: o.hooks.chance}},
		renewTimeout:   client.timeout(o, (o.renewDeadline-o.renewInterval)/4),
		acquireTimeout: client.timeout(o, o.renewDeadline/3),
		started:        time.Now(),
	}
	changedAny := make(chan struct{}, 1)
	if first != nil {
		c.user, changedAny = first.user, first.store.changedAny
	} else {
		c.user = &userCode{clock: c.clock, abort: func(p *userPanic) { c.cancel(p) }}
	}
	c.lease = &leaseClient{
		leases:       client.leases(namespace),
		namespace:    namespace,
		name:         o.name,
		identity:     o.identity,
		duration:     o.duration,
		fieldManager: o.fieldManager,
		labels:       o.labels,
		advertise:    o.advertise,
		priority:     o.standbyPriority(),
		owner:        o.owner,
		answers:      &client.answers,
		user:         c.user,
		clock:        c.clock,
	}
	switch {
	case c.lease.identity != "":
	case first != nil:
		c.lease.identity = first.lease.identity
	default:
		c.lease.identity = newIdentity()
	}
	if o.hooks.wrap != nil {
		c.lease.leases = o.hooks.wrap(c.lease.leases)
	}
	c.log = &campaignLog{c.user, o.log, []slog.Attr{
		slog.String("lease", namespace+"/"+o.name), slog.String("identity", c.lease.identity),
	}}
	c.renewDelays, c.releaseDelays = newDelays(o.newBackOff, c.user), newDelays(o.newBackOff, c.user)
	c.store = &leaseStore{
		namespace:  namespace,
		name:       o.name,
		clock:      c.clock,
		fallback:   o.duration,
		ours:       c.claims.include,
		changed:    make(chan struct{}, 1),
		changedAny: changedAny,
	}
	c.reflector = &reflector{
		store:    c.store,
		lease:    c.lease,
		client:   client,
		clock:    c.clock,
		log:      c.log,
		delays:   newDelays(o.newBackOff, c.user),
		timeout:  c.acquireTimeout,
		interval: o.renewInterval,
		between:  o.between,
		alarm:    make(chan struct{}, 1),
	}
	c.store.doubt = c.reflector.doubt
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

// resolveDoubt looks whether a claim whose outcome is unknown acquired the lease, and frees it then.
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
	if err != nil && err != errNotOurs {
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

// A candidate waits for one lease, on the caller's goroutine, and owns what it learned from its tries.
type candidate struct {
	campaign        *campaign
	delays          *delays
	attempt         attempt
	rivals          *rivals // shared with the candidates for other slots
	failures        int     // of claims in a row that did not meet with another's write
	lostRace        bool    // the last claim met with another candidate's write
	warnedUndone    bool    // claims succeed, but are undone at once, which was logged
	hasty           bool    // it does not leave a released lease to the one that the release names
	createModeMet   bool    // the create mode does not matter any more
	warnedStrategy  bool    // another program decides who holds the lease, which was logged
	warnedDuplicate term    // the last one that another process had in our name, which was logged
}

func newCandidate(c *campaign, r *rivals) *candidate {
	return &candidate{campaign: c, delays: newDelays(c.options.newBackOff, c.user), rivals: r}
}

// An attempt is what a candidate plans to do about the Lease in one state.
type attempt struct {
	on    record    // the state it is about
	at    time.Time // when to claim the lease
	check time.Time // when to check whether the watch missed something; zero when that was done
	free  bool      // nobody holds the lease, and we have not claimed it

	register time.Time // when to say on the Lease that we stand by; zero when that is not to be said
}

// look returns what is known of the lease, and how long to wait before claiming it: at most 0 when it may be claimed
// now. The error is what ends the campaign.
func (c *candidate) look(ctx context.Context) (observation, time.Duration, error) {
	o, err := c.rule(ctx)
	if err != nil {
		return o, 0, err
	}
	wake := c.untilAttempt(o)
	if due := c.attempt.register; wake > 0 && !due.IsZero() {
		if left := due.Sub(c.campaign.clock.now().mono); left > 0 {
			return o, min(wake, left), nil
		}
		c.register(ctx, o)
		return c.look(ctx)
	}
	return o, wake, nil
}

// rule returns what is known of the lease, once that does not contradict the create mode. The error is what ends the
// campaign.
func (c *candidate) rule(ctx context.Context) (observation, error) {
	o := c.campaign.store.latest()
	for ; c.ruledOut(o.record, o.known) != nil && ctx.Err() == nil; o = c.campaign.store.latest() {
		// An event may be of long ago: only a read decides.
		r, err := c.campaign.reflector.read(ctx)
		if err != nil {
			sleep(ctx, c.campaign.clock, c.delays.next(err, c.campaign.options.renewInterval))
		} else if err := c.ruledOut(r, true); err != nil {
			return o, err
		}
	}
	return o, nil
}

// ruledOut returns why the create mode rules out the Lease that the campaign found, if it is known.
func (c *candidate) ruledOut(r record, known bool) error {
	switch mode := c.campaign.options.createMode; {
	case c.createModeMet || !known:
		return nil
	case mode == CreateNew && r.exists() && !c.campaign.claims.include(r.term()):
		return fmt.Errorf("leasehold: %w: %s/%s, and CreateNew wants to create it", ErrExists,
			c.campaign.lease.namespace, c.campaign.lease.name)
	case mode == UseExisting && !r.exists():
		return c.notFound()
	default:
		c.createModeMet = mode != CreateNew
		return nil
	}
}

func (c *candidate) notFound() error {
	return fmt.Errorf("leasehold: %w: %s/%s, and UseExisting does not create it", ErrNotFound,
		c.campaign.lease.namespace, c.campaign.lease.name)
}

// untilAttempt returns how long to wait before claiming the lease as it is in o; at most 0 when it may be
// claimed now.
func (c *candidate) untilAttempt(o observation) time.Duration {
	if !o.known {
		return maxDuration // for news
	}
	if c.attempt.at.IsZero() || !c.attempt.on.is(o.record) {
		c.plan(o)
	}
	now := c.campaign.clock.now().mono
	wake := c.attempt.at.Sub(now)
	if !o.exists() && c.campaign.options.createMode == UseExisting {
		wake = maxDuration // for news
	}
	if wake <= 0 || c.attempt.check.IsZero() {
		return wake
	}
	if check := c.attempt.check.Sub(now); check > 0 {
		return min(wake, check)
	}
	c.check(o, now)
	return c.untilAttempt(o)
}

// check reads the Lease because the watch has not brought what it should have by now: a renewal or, of a Lease that
// a read did not find, its deletion. A candidate that does not create the Lease distrusts the watch later: if the Lease
// exists after all, a new watch brings it.
func (c *candidate) check(o observation, now time.Time) {
	c.attempt.check = time.Time{}
	switch waits := c.campaign.options.createMode == UseExisting; {
	case o.held(), !waits:
		c.campaign.reflector.doubt()
	case now.Before(o.missedHolderUntil):
		c.campaign.reflector.doubt()
		c.attempt.check = o.missedHolderUntil
	default:
		c.campaign.reflector.distrust()
	}
}

// plan makes the attempt for the Lease as it is in o.
func (c *candidate) plan(o observation) {
	c.campaign.stalledSince.Store(nil)
	c.campaign.claims.forget(o, c.campaign.clock.now().mono, false)
	if c.attempt.free && o.held() {
		c.rivals.window = c.rivals.window.preempted()
	}
	c.attempt = attempt{
		on:   o.record,
		at:   o.acquirableAt(c.campaign.claims.include),
		free: !o.held(),
	}
	switch {
	case o.held():
		c.attempt.check = c.campaign.renewalOverdueAt(o)
	case !o.exists() && o.missedHolderUID != "": // a watch brings a deletion sooner
		c.attempt.check = c.campaign.clock.now().mono.Add(c.campaign.options.renewInterval)
	}
	switch {
	case o.strategy:
		c.attempt.at = c.campaign.clock.now().mono.Add(maxDuration) // for news
		c.warnStrategy()
	case c.campaign.options.reclaim && o.identity == c.campaign.lease.identity:
		c.attempt.at = o.clearAt()
	case !c.campaign.claims.include(o.term()):
		c.attempt.at = c.attempt.at.Add(c.pauseBefore(o))
		c.warnDuplicate(o.term())
	}
	if c.outranks(o) {
		interval := c.campaign.options.renewInterval // many standbys find out at once that there is a new holder
		c.attempt.register = c.campaign.clock.now().mono.Add(c.campaign.options.between(interval/20, interval/4))
	}
}

// pauseBefore returns how long the lease, as it is in o, is left to others once it may be acquired.
func (c *candidate) pauseBefore(o observation) time.Duration {
	options, now := c.campaign.options, c.campaign.clock.now().mono
	switch next := o.notes.Successor; {
	case next == "" || c.hasty:
	case next == c.campaign.lease.identity:
		return 0
	default:
		grace := successorGrace(options)
		return max(c.rivals.delay(options, now), options.between(grace*3/4, grace))
	}
	return c.rivals.delay(options, now)
}

// coordinated is why a lease is not competed for.
const coordinated = "coordinated leader election decides who holds it: spec.strategy is set"

// warnStrategy tells operators, once, that another program decides who holds the lease.
func (c *candidate) warnStrategy() {
	if !c.warnedStrategy {
		c.campaign.log.warn("waiting until the Lease has no strategy", "cause", coordinated)
	}
	c.warnedStrategy = true
}

// renewalOverdueAt returns by when the holder in o will have renewed the lease if it lives.
func (c *campaign) renewalOverdueAt(o observation) time.Time {
	return o.since.Add(c.options.between(o.wait/10*6, o.wait/10*7))
}

// warnDuplicate tells operators, once for each term, that another process holds the lease in our name.
func (c *candidate) warnDuplicate(t term) {
	if t.identity != c.campaign.lease.identity || t == c.warnedDuplicate {
		return
	}
	c.warnedDuplicate = t
	c.campaign.log.warn(
		"lease held under our own identity by another process or an earlier run of this one; waiting until it expires",
		"acquireTime", t.acquired)
}

// recoverFrom finds out what became of a claim to the lease as it was in o that failed with err, and pauses where
// the next one would come too soon.
func (c *candidate) recoverFrom(ctx context.Context, o observation, err error) {
	switch {
	case err == errChanged:
		return
	case errors.Is(err, ErrLost) || errors.Is(err, ErrYielded) || ctx.Err() != nil:
		c.failures++
	case outcomeUnknown(err):
		c.failures++
		// Until this one is known, another write would only add to the doubt.
		for ctx.Err() == nil {
			_, err := c.campaign.reflector.read(ctx)
			if err == nil {
				break
			}
			sleep(ctx, c.campaign.clock, c.delays.next(err, c.campaign.options.renewInterval))
		}
		now := c.campaign.store.latest()
		c.campaign.claims.forget(now, c.campaign.clock.now().mono, true)
		if c.campaign.claims.include(now.term()) {
			c.failures = 0 // it took effect
		}
	case conflicts(err):
		c.campaign.log.debug("lost the race for the lease", "error", err)
		c.rivals.window = c.rivals.window.lost(c.campaign.options.renewInterval)
		c.failures = 0
		again := c.lostRace
		c.lostRace = true
		if now := c.campaign.store.latest(); now.held() && !c.campaign.claims.include(now.term()) {
			c.lostRace = false
			c.delays.reset()
			return // a standby again: the next release must not find it asleep
		}
		if c.campaign.store.unchangedSince(o) {
			c.checkStalled(ctx, err)
		}
		if !again {
			return // the lease may be free all the same
		}
	default:
		c.failures++
	}
	sleep(ctx, c.campaign.clock, c.delays.next(err, c.campaign.options.renewInterval))
}

// checkStalled reads the Lease afresh when claims have failed with conflicts for the duration although nothing is
// known to have happened to it: what is known of it is wrong then.
func (c *candidate) checkStalled(ctx context.Context, err error) {
	now := c.campaign.clock.now().mono
	since := c.campaign.stalledSince.Load()
	if since == nil {
		c.campaign.stalledSince.Store(&now)
		return
	}
	if now.Sub(*since) < c.campaign.options.duration {
		return
	}
	c.campaign.stats.setError(err)
	c.campaign.log.warn("campaign stuck: claims fail although nothing has happened to the Lease; reading it afresh",
		"after", rounded(now.Sub(*since)), "error", err)
	if c.campaign.reflector.readAfresh(ctx) == nil { // else it logs its own failure
		c.campaign.stalledSince.Store(nil)
	}
}

// pause gives others their turn after the session s, which was of this lease.
func (c *candidate) pause(ctx context.Context, s *session) {
	clock, interval := c.campaign.clock, c.campaign.options.renewInterval
	lost := s.loss() != nil
	if lost && s.began.add(interval).left(clock.now()) > 0 {
		sleep(ctx, clock, c.delays.next(nil, interval)) // what ended it may do so again and again
		return
	}
	c.delays.reset()
	if !lost {
		sleep(ctx, clock, c.campaign.options.between(interval/4, interval*3/4))
	}
}

// write makes a request of a kind that keeps or frees the lease, and records what the Lease is then. The caller has
// a permit, or needs none, also for the read that this may take: a holder must not wait for it behind others.
func (c *campaign) write(
	ctx context.Context, kind string, request func(context.Context) (record, error),
) (record, error) {
	before := c.store.latest()
	r, err := c.lease.request(ctx, kind, c.renewTimeout.current(), request)
	switch {
	case err == nil:
		c.store.addAnswer(r, before)
	case conflicts(err):
		c.reflector.readPermitted(ctx) // logs its own failure
	}
	return r, err
}

// holder returns the holder of the lease in o.
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
		Address:     r.notes.Address,
	}
}
