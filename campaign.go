package leasehold

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
)

// A campaign is one candidate for one lease, from when its sequence is ranged over until the loop
// is left. It waits for the lease on the caller's goroutine; its feed follows the Lease all the
// time.
type campaign struct {
	*options
	log     *slog.Logger
	lane    *lane
	left    bool // the lane; protected by lanes
	api     *api
	feed    *feed
	outages *outages
	ledger  *ledger
	started time.Time
	held    atomic.Pointer[hold] // the session whose body runs; nil between them
	due     promise              // of who is at work

	renewTimeout patience // of a write that keeps or frees the lease; three fit before the deadline
	takeTimeout  patience // of a read, or a write that takes the lease

	group    errgroup.Group  // the feed
	ctx      context.Context // the feed's
	stopFeed context.CancelFunc

	// What follows is owned by who is at work: the candidate or, while there is a session, its
	// keeper.
	delays  delays
	plan    plan
	raced   bool      // the last try to take the lease met with somebody else's write
	undone  bool      // tries to take the lease succeed, but are undone at once
	spread  spread    // of the tries to take the lease
	begun   bool      // the create mode was satisfied
	doubts  []term    // what may have taken the lease unheard, since it was last heard to be taken
	stamped time.Time // the newest time written to the Lease

	namesake term // the last one that somebody else had in our name

	mu    sync.Mutex
	terms []term // what we wrote or may have written, the newest last; protected by mu
}

// longestTimeout bounds every request: after it, a new one is more likely to be answered.
const longestTimeout = 10 * time.Second

// newCampaign prepares to campaign. It makes no request yet; follow does.
func newCampaign(ctx context.Context, o *options) (*campaign, error) {
	c := &campaign{options: o}
	if err := c.connect(); err != nil {
		return nil, fmt.Errorf("leasehold: no usable client configuration: %w", err)
	}
	c.log = o.log.With("lease", c.api.namespace+"/"+c.api.name, "identity", c.api.identity)
	c.started = time.Now()
	c.renewTimeout = c.patience((c.renewDeadline - c.renewInterval) / 4)
	c.takeTimeout = c.patience(c.renewDeadline / 3)
	c.delays = c.newDelays()
	c.outages = newOutages(c.log, &c.lane.outcry, c.duration)
	c.feed = &feed{
		api:      c.api,
		lane:     c.lane,
		clock:    c.clock,
		viewer:   viewer{fallback: c.duration, mine: c.mine},
		outages:  c.outages,
		delays:   c.newDelays(),
		timeout:  c.takeTimeout,
		interval: c.renewInterval,
		between:  c.between,
		changed:  make(chan struct{}, 1),
		alarm:    make(chan struct{}, 1),
	}
	c.expect(maxDuration) // until it begins
	c.feed.promise(maxDuration)
	c.ledger = c.monitor.ledger(c)
	c.outages.ledger = c.ledger
	// The feed outlives ctx: a body that winds down after ctx has ended still holds the lease.
	c.ctx, c.stopFeed = context.WithCancel(context.WithoutCancel(ctx))
	c.feed.start = func() {
		c.group.Go(func() error {
			c.feed.run(c.ctx)
			return nil
		})
	}
	return c, nil
}

// patience returns how long to wait for an answer: least, longer where answers take long, but neither so long that a
// request that was lost costs more than the renew deadline, nor longer than longestTimeout.
func (c *campaign) patience(least time.Duration) patience {
	return patience{&c.lane.answers, min(least, longestTimeout), min(c.renewDeadline, longestTimeout)}
}

// follow begins to follow the Lease.
func (c *campaign) follow() { c.feed.follow(c.lane.enterHub(c.feed, c.options)) }

// connect finds out where the Lease is and how to get there.
func (c *campaign) connect() (err error) {
	namespace := c.namespace
	if namespace == "" {
		if namespace, err = defaultNamespace(); err != nil {
			return err
		}
	}
	config := c.config
	if c.client == nil && config == nil {
		if config, err = defaultConfig(); err != nil {
			return err
		}
	}
	if c.lane, err = enterLane(c.client, config, c.renewInterval); err != nil {
		return err
	}
	identity := c.identity
	if identity == "" {
		identity = newIdentity()
	}
	leases := c.lane.leases.Leases(namespace)
	if c.wrap != nil {
		leases = c.wrap(leases)
	}
	c.api = &api{
		leases:       leases,
		namespace:    namespace,
		name:         c.name,
		identity:     identity,
		duration:     c.duration,
		fieldManager: c.fieldManager,
		labels:       c.labels,
		owner:        c.owner,
		answers:      &c.lane.answers,
	}
	return nil
}

// leave ends the campaign: nothing that it started is left. A write that took the lease unheard of
// is taken back. It may be called again after another request was made.
func (c *campaign) leave() {
	c.withdraw()
	c.feed.leave(func() {
		c.stopFeed()
		c.group.Wait()
	})
	c.lane.leave(c)
	c.outages.leave()
	c.ledger.left(c)
}

// withdraw looks whether a write whose outcome is unknown took the lease, and frees it then.
func (c *campaign) withdraw() {
	if c.doubts == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), c.clock.wait(c.takeTimeout.now()))
	defer cancel()
	err := c.feed.read(ctx)
	if err == nil {
		err = c.free(ctx, func(r record) error {
			if !slices.ContainsFunc(c.doubts, r.term().is) {
				return errNotOurs
			}
			return nil
		})
	}
	if err != nil && err != errNotOurs {
		c.log.Warn("lease perhaps not released; it runs out by itself", "error", err)
	}
	c.doubts = nil
}

// errNotOurs is why a lease is not freed.
var errNotOurs = errors.New("not ours")

// free gives the lease back, and tries again until ctx ends, at most for half of the renew deadline after
// it had its first turn. It gives up when refuse, which is asked about the newest record before each try,
// returns an error. Nil means that the lease was freed.
func (c *campaign) free(ctx context.Context, refuse func(record) error) error {
	delays, inDoubt := c.newDelays(), false
	for tries := 0; ; tries++ {
		if err := refuse(c.feed.latest().record); err != nil {
			if inDoubt {
				return nil // an earlier try did it
			}
			return err
		}
		done, err := c.lane.turn(ctx)
		r := c.feed.latest().record
		if refuse(r) != nil { // since others had their turn
			if err == nil {
				done()
			}
			continue // to say so
		}
		if err != nil {
			return err
		}
		if tries == 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, c.clock.wait(c.renewDeadline/2))
			defer cancel()
		}
		free, err := c.write(ctx, "release", c.renewTimeout.now(), func(ctx context.Context) (record, error) {
			return c.api.release(ctx, r)
		})
		if err == nil {
			done()
			if c.deleteOnRelease {
				c.remove(ctx, free)
			}
			return nil
		}
		if unknownOutcome(err) {
			inDoubt = true
			if refuse(c.feed.latest().record) == nil { // the watch has not told
				c.feed.readNow(ctx) // reports its own failure
			}
		}
		done()
		sleep(ctx, c.clock, delays.next(err, c.renewInterval))
		if ctx.Err() != nil && refuse(c.feed.latest().record) == nil {
			return err
		}
	}
}

// remove deletes the Lease that was just freed. It is left where somebody has taken it meanwhile.
func (c *campaign) remove(ctx context.Context, free record) {
	ctx, cancel := context.WithTimeout(ctx, c.clock.wait(c.renewTimeout.now()))
	defer cancel()
	err := c.api.remove(ctx, free)
	c.outages.note("delete", err)
	if err != nil {
		c.log.Debug("the Lease was not deleted", "error", err)
		return
	}
	c.feed.removed(free)
}

// await returns once this process holds the lease, to be trusted for half of the renew deadline at
// least. The error is what ends the campaign.
func (c *campaign) await(ctx context.Context) (*hold, error) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		s := c.feed.latest()
		if err := c.unfit(s); err != nil {
			return nil, err
		}
		wake := c.prepare(s)
		if wake <= 0 {
			h, err := c.take(ctx, s)
			if err == nil {
				return h, nil
			}
			c.settle(ctx, err)
			continue
		}
		c.expect(wake)
		timer.Reset(c.clock.wait(wake))
		rested := c.clock.now().add(c.renewInterval / 2)
		select {
		case <-timer.C:
		case <-c.feed.changed:
		case <-ctx.Done():
		}
		if rested.left(c.clock.now()) <= 0 {
			c.delays.reset() // what failed before is long ago
		}
	}
	return nil, context.Cause(ctx)
}

// unfit returns why the create mode rules out the Lease that the campaign found.
func (c *campaign) unfit(s sighting) error {
	switch {
	case c.begun || !s.known:
		return nil
	case c.createMode == CreateNew && s.exists() && !c.mine(s.term()):
		return fmt.Errorf("leasehold: %w: %s/%s, and CreateNew wants to create it", ErrExists, c.api.namespace, c.api.name)
	case c.createMode == UseExisting && !s.exists():
		return c.notFound()
	}
	c.begun = c.createMode != CreateNew
	return nil
}

func (c *campaign) notFound() error {
	return fmt.Errorf("leasehold: %w: %s/%s, and UseExisting does not create it", ErrNotFound, c.api.namespace, c.api.name)
}

// A plan is what a candidate means to do about the Lease in one state.
type plan struct {
	uid     types.UID // the state it is about
	version uint64
	take    time.Time // when to take the lease
	look    time.Time // when to look whether the watch missed something
	open    bool      // nobody holds the lease, and we have not tried to take it
}

// prepare returns how long to wait before taking the lease as it is in s; at most 0 when it may be
// taken now.
func (c *campaign) prepare(s sighting) time.Duration {
	if !s.known || !s.exists() && c.createMode == UseExisting {
		return maxDuration // for news
	}
	if c.plan.take.IsZero() || c.plan.uid != s.uid || c.plan.version != s.version {
		if c.plan.open && s.held() {
			c.spread = c.spread.beaten()
		}
		c.plan = plan{
			uid:     s.uid,
			version: s.version,
			take:    c.feed.viewer.takeable(s),
			look:    s.since.Add(c.between(s.wait/10*6, s.wait/10*7)),
			open:    !s.held(),
		}
		switch {
		case c.reclaim && s.identity == c.api.identity:
			c.plan.take = s.vacant()
		case !c.mine(s.term()):
			c.plan.take = c.plan.take.Add(c.spread.delay(c.luck()))
			c.noteNamesake(s.term())
		}
	}
	now := c.clock.now().mono
	wake := c.plan.take.Sub(now)
	if s.held() && wake > 0 && !c.plan.look.IsZero() {
		// A holder that lives would have renewed by now.
		look := c.plan.look.Sub(now)
		if look <= 0 {
			c.plan.look = time.Time{}
			c.feed.doubt()
		} else {
			wake = min(wake, look)
		}
	}
	return wake
}

// noteNamesake tells operators, once for each term, that somebody else holds the lease in our name.
func (c *campaign) noteNamesake(t term) {
	if t.identity != c.api.identity || t == c.namesake {
		return
	}
	c.namesake = t
	c.log.Warn("another process holds the lease under our identity, or this one did before it restarted; waiting for it as for anybody else",
		"acquireTime", t.acquired)
}

// noteUndone tells operators, once until a session begins, that the lease was acquired, and lost before
// that was known: an admission webhook or somebody who watches changes what we write.
func (c *campaign) noteUndone(cause error) {
	c.ledger.noteError(cause)
	if !c.undone {
		c.log.Warn("lease acquired, but lost at once; trying again", "cause", cause)
	}
	c.undone = true
}

// take tries to take the lease as it is in s. The error may also be why the session ended before it
// began.
func (c *campaign) take(ctx context.Context, s sighting) (*hold, error) {
	c.expect(maxDuration) // for its turn
	done, err := c.lane.turn(ctx)
	if err != nil {
		return nil, err
	}
	if now := c.feed.latest(); now.uid != s.uid || now.version != s.version {
		done()
		return nil, errOvertaken
	}
	c.expect(2*c.takeTimeout.now() + c.renewDeadline) // the write, a read, and a renewal
	c.plan.open = false
	sent := c.clock.now()
	claim := term{s.uid, c.api.identity, c.claimStamp()}
	c.claim(claim)
	// A write that is cut short has an unknown outcome: ctx does not end this one, its timeout does.
	r, err := c.send(context.WithoutCancel(ctx), "acquire", c.takeTimeout.now(), func(ctx context.Context) (record, error) {
		defer done()
		if !s.exists() {
			return c.api.create(ctx, claim.acquired)
		}
		return c.api.acquire(ctx, s.record, claim.acquired)
	})
	if overtaken(err) {
		c.meet(ctx, s)
	}
	if err == nil {
		claim.uid = r.uid
		// The watch may have told meanwhile that it is somebody else's again.
		if err = cmp.Or(claim.judge(r, c.duration), claim.judge(c.feed.latest().record, c.duration)); err != nil {
			c.noteUndone(err)
		}
	}
	if err == nil && c.feed.latest().vacant().After(c.clock.now().mono) {
		// While our creation was under way another created the Lease, and lost it.
		err = errGhost
	}
	switch {
	case err == nil:
	case unknownOutcome(err):
		c.doubts = remember(c.doubts, claim)
		return nil, err
	default:
		c.disclaim()
		return nil, err
	}
	c.begun, c.raced, c.undone, c.doubts, c.spread = true, false, false, nil, c.spread.won()
	h := c.newHold(ctx, r, sent)
	c.held.Store(h)
	c.ledger.acquired()
	c.log.Info("lease acquired", "fencingToken", h.token, "transitions", r.transitions)
	h.event("became leader")
	for h.left() < c.renewDeadline/2 && h.loss() == nil && ctx.Err() == nil {
		select {
		case <-h.renewed:
		case <-h.lost:
		case <-ctx.Done():
		}
	}
	if err := h.Err(); err != nil {
		h.finish(false)
		return nil, err
	}
	h.given.Store(true)
	return h, nil
}

// errOvertaken is why a lease is not taken whose state changed while others had their turn.
var errOvertaken = errors.New("leasehold: the Lease has changed meanwhile")

// errGhost is why a Lease that was created gives no session yet: then it is taken once that is over.
var errGhost = errors.New("the Lease was deleted under a holder that may not have heard")

// settle finds out what became of a try to take the lease that failed with err, and pauses where the
// next one would come too soon.
func (c *campaign) settle(ctx context.Context, err error) {
	switch {
	case err == errOvertaken:
		return
	case errors.Is(err, ErrLost) || ctx.Err() != nil:
	case unknownOutcome(err):
		// Until this one is known, another write would only add to the doubt.
		for err := c.feed.read(ctx); err != nil && ctx.Err() == nil; err = c.feed.read(ctx) {
			c.expect(c.takeTimeout.now() + c.renewInterval)
			sleep(ctx, c.clock, c.delays.next(err, c.renewInterval))
		}
	case apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err):
		c.log.Debug("somebody else was faster", "error", err)
		c.spread = c.spread.lost(c.renewInterval)
		again := c.raced
		c.raced = true
		if now := c.feed.latest(); now.held() && !c.mine(now.term()) {
			c.raced = false
			c.delays.reset()
			return // a standby again: the next release must not find it asleep
		}
		if !again {
			return // there may be room for us nevertheless
		}
	}
	sleep(ctx, c.clock, c.delays.next(err, c.renewInterval))
}

// pause lets others have their turn after the session of h.
func (c *campaign) pause(ctx context.Context, h *hold) {
	lost := h.loss() != nil
	if lost && h.began.add(c.renewInterval).left(c.clock.now()) > 0 {
		sleep(ctx, c.clock, c.delays.next(nil, c.renewInterval)) // whoever ended it may do so again, and again
		return
	}
	c.delays.reset()
	if !lost {
		sleep(ctx, c.clock, c.between(c.renewInterval/4, c.renewInterval*3/4))
	}
}

// write makes a request that changes the Lease, and takes note of what the Lease says then. The caller has
// a turn, for the read that this may take as well: a holder must not wait for it behind those who are none.
func (c *campaign) write(ctx context.Context, kind string, timeout time.Duration, request func(context.Context) (record, error)) (record, error) {
	r, err := c.send(ctx, kind, timeout, request)
	if overtaken(err) {
		c.feed.readNow(ctx) // reports its own failure
	}
	return r, err
}

// send is write, but it takes no note of what kept the request from changing the Lease.
func (c *campaign) send(ctx context.Context, kind string, timeout time.Duration, request func(context.Context) (record, error)) (record, error) {
	before := c.feed.latest()
	ctx, cancel := context.WithTimeout(ctx, c.clock.wait(timeout))
	defer cancel()
	r, err := request(ctx)
	c.outages.note(kind, err)
	if err == nil {
		c.feed.see(r, before)
	}
	return r, err
}

// overtaken tells whether a write failed with err because the Lease is not any more as it was.
func overtaken(err error) bool {
	return err != nil && (apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err))
}

// meet takes note of what overtook a try to take the lease as it was in s. A watch that lives tells in
// a moment, which spares the API server a read from each of many that lost the race.
func (c *campaign) meet(ctx context.Context, s sighting) {
	if c.feed.watches() && c.doubts == nil {
		timer := time.NewTimer(c.clock.wait(heardWithin))
		defer timer.Stop()
		for waiting := true; waiting; {
			if now := c.feed.latest(); now.uid != s.uid || now.version != s.version {
				return
			}
			select {
			case <-c.feed.changed:
			case <-timer.C:
				waiting = false
			case <-ctx.Done():
				return
			}
		}
	}
	c.feed.read(ctx) // reports its own failure
}

// heardWithin bounds how long a watch is waited for that has news, before it is doubted.
const heardWithin = 100 * time.Millisecond

// expect notes that who is at work means to go on in d, for Monitor.Check.
func (c *campaign) expect(d time.Duration) { c.due.in(c.clock, d) }

// firstRenewal returns how long after the start of the write that took the lease it is first renewed.
// Leases that were taken together, as by a standby of a process with many, are not renewed together.
func (c *campaign) firstRenewal() time.Duration {
	return c.between(c.renewInterval/4, c.renewInterval)
}

// nextRenewal returns how long after the start of a renewal the next one begins. Chance keeps the
// renewals of many leases from coming all at once.
func (c *campaign) nextRenewal() time.Duration {
	return c.between(c.renewInterval*9/10, c.renewInterval)
}

// stamp returns the time to write to the Lease that r is of: the present, but later than all that
// this campaign wrote, because others tell by a new time that we are alive, and we which of our
// writes took effect.
func (c *campaign) stamp(r record) time.Time {
	t := time.Now().UTC().Truncate(time.Microsecond)
	if t == r.renewed {
		t = t.Add(time.Microsecond)
	}
	return c.later(t)
}

// claimStamp is stamp for a claim. Its microseconds are drawn by chance: if a second process with our
// identity claims the lease in the same moment, a claim of ours that was lost must not look like its.
func (c *campaign) claimStamp() time.Time {
	return c.later(time.Now().UTC().Truncate(time.Millisecond).Add(c.chance(time.Millisecond).Truncate(time.Microsecond)))
}

func (c *campaign) later(t time.Time) time.Time {
	if !t.After(c.stamped) {
		t = c.stamped.Add(time.Microsecond)
	}
	c.stamped = t
	return t
}

// claim notes that t is about to be written.
func (c *campaign) claim(t term) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.terms = remember(c.terms, t)
}

// remember returns terms with t added. It forgets the oldest beyond eight: a write that was tried so
// long ago cannot take effect any more.
func remember(terms []term, t term) []term {
	if len(terms) == 8 {
		terms = slices.Delete(terms, 0, 1)
	}
	return append(terms, t)
}

// disclaim notes that the last claim was not written.
func (c *campaign) disclaim() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.terms = c.terms[:len(c.terms)-1]
}

// mine tells whether this campaign wrote t, as far as it knows.
func (c *campaign) mine(t term) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.terms, t.is)
}

// holder returns who holds the lease in r.
func (c *campaign) holder(r record) Holder {
	return Holder{
		Namespace:   c.api.namespace,
		Name:        c.api.name,
		Identity:    r.identity,
		AcquireTime: r.acquired,
		RenewTime:   r.renewed,
		Duration:    r.duration,
		Transitions: r.transitions,
	}
}
