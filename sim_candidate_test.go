package leasehold

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	_ "unsafe" // for go:linkname

	"github.com/cenkalti/backoff/v4"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	applycoordinationv1 "k8s.io/client-go/applyconfigurations/coordination/v1"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/leasehold-go/leasehold/leasetest"
)

// A link is the way of one process to the API server.
type link struct {
	sim    *sim
	name   string
	id     uint64
	client *leasetest.Client
	leases coordinationv1client.LeaseInterface

	sentBeforeCalm atomic.Int64 // requests under way that were sent before the faults stopped
	lastTrouble    atomic.Int64 // when anything last went wrong with a request, the link or the clock
	cuts           atomic.Int64 // by how many faults it is cut off
}

func (s *sim) newLink(name string) *link {
	l := &link{sim: s, name: name, id: uint64(len(s.links))}
	s.links = append(s.links, l)
	return l
}

func (l *link) connect() {
	l.client = l.sim.srv.Client(l.name)
	l.leases = l.client.Leases(ns)
	l.client.OnRequest(func(r leasetest.Request) leasetest.Fault { return l.sim.fate(l, r) })
	l.client.OnEvent(func(e watch.Event) time.Duration {
		version := ""
		if lease, ok := e.Object.(*coordinationv1.Lease); ok {
			version = lease.ResourceVersion
		}
		return l.sim.delay(l, version)
	})
}

// begin notes that a request is sent; what it returns, that it is over.
func (l *link) begin() (end func()) {
	if l.sim.now() >= l.sim.calm {
		return func() {}
	}
	l.sentBeforeCalm.Add(1)
	return func() { l.sentBeforeCalm.Add(-1) }
}

// cut cuts the link off, or takes that back.
func (l *link) cut(off bool) {
	if off {
		l.cuts.Add(1)
	} else {
		l.cuts.Add(-1)
	}
	l.lastTrouble.Store(int64(l.sim.now()))
	l.client.Partition(l.cuts.Load() > 0)
}

// trouble returns when anything last went wrong here that might keep a holder from renewing.
func (l *link) trouble() time.Duration {
	if l.cuts.Load() > 0 {
		return l.sim.now()
	}
	return time.Duration(l.lastTrouble.Load())
}

// fault notes a request's fate if it is worth telling.
func (l *link) fault(at time.Duration, r leasetest.Request, f leasetest.Fault) {
	if f.Drop == leasetest.Nothing && f.Err == nil && f.Before+f.After <= 2*l.sim.latency {
		return
	}
	l.lastTrouble.Store(int64(at))
	what := ""
	switch f.Drop {
	case leasetest.TheRequest:
		what = ", the request is lost"
	case leasetest.TheReply:
		what = ", the reply is lost"
	}
	if f.Late {
		what += ", past recall"
	}
	l.sim.judge.detail(l.name, "%s: %v there, %v back%s: %v", r.Verb, f.Before, f.After, what, f.Err)
}

type interval struct{ from, to time.Duration }

type settings struct {
	duration, renewDeadline, renewInterval time.Duration

	process *simProcess // whose watch it shares; nil if it does not
	many    int         // from how many campaigns on

	mode     CreateMode
	identity string // "" for a fresh one for each campaign
	rate     float64
	form     form
	deletes  bool // WithDeleteOnRelease
	reclaims bool // WithReclaim
}

// A simCandidate is a process that campaigns again and again.
type simCandidate struct {
	settings
	sim   *sim
	name  string
	link  *link
	slept atomic.Int64
	downs []interval // when it does not run

	campaigns int
}

func (c *simCandidate) String() string {
	identity := c.identity
	if identity == "" {
		identity = c.name + "-N"
	}
	s := fmt.Sprintf("%s: identity %s, duration %v, deadline %v, interval %v, mode %d, clock rate %.3f, %v, deletes %v, reclaims %v",
		c.name, identity, c.duration, c.renewDeadline, c.renewInterval, c.mode, c.rate, c.form, c.deletes, c.reclaims)
	if c.process != nil {
		s += fmt.Sprintf(", shares the watch of %s if %d do", c.process.name, c.many)
	}
	return s
}

// live runs campaigns until the world ends.
func (c *simCandidate) live() {
	clock := simClock{rateClock{c.sim.start, c.rate}, &c.slept}
	pauses := roll(c.sim.seed, 4, c.link.id)
	for c.sim.ctx.Err() == nil {
		pause := pauses.among(30*time.Millisecond, 9*time.Second)
		ctx, cancel := context.WithCancelCause(c.sim.ctx)
		if till := nextDown(c.downs, c.sim.now()); till > c.sim.now() {
			down := time.AfterFunc(till-c.sim.now(), func() { cancel(errDown) })
			c.campaigns++
			if err := newSimCampaign(c, clock).run(ctx); errors.Is(err, ErrExists) || errors.Is(err, ErrNotFound) {
				pause += 10 * time.Second // no use in trying again soon
			}
			down.Stop()
		}
		cancel(nil)
		now := c.sim.now()
		if now+pause > c.sim.calm && pause < 10*time.Second {
			pause = max(30*time.Millisecond, c.sim.calm-now) // there is somebody to lead in fair weather
		}
		c.sim.sleepUntil(max(upAgain(c.downs, now), now+pause))
	}
}

// nap lets the machine sleep for d.
func (c *simCandidate) nap(d time.Duration) {
	c.slept.Add(int64(d))
	c.link.lastTrouble.Store(int64(c.sim.now()))
}

var errDown = errors.New("the process is told to stop")

// nextDown returns when a process that runs now has to stop; now if it may not run.
func nextDown(downs []interval, now time.Duration) time.Duration {
	next := 1000 * time.Hour
	for _, d := range downs {
		if d.to > now {
			next = min(next, max(now, d.from))
		}
	}
	return next
}

// upAgain returns when a process may run, at or after now.
func upAgain(downs []interval, now time.Duration) time.Duration {
	for again := true; again; {
		again = false
		for _, d := range downs {
			if d.from <= now && now < d.to {
				now, again = d.to, true
			}
		}
	}
	return now
}

// A simCampaign is one campaign, and its own client: it shows every request to the judge.
type simCampaign struct {
	*simCandidate
	coordinationv1client.LeaseInterface
	clock    clock
	identity string
	label    string

	// What follows is protected by the judge's mu.
	uids    map[types.UID]bool // the Leases that it was told of in a reply
	terms   map[tenureKey]bool // the terms that it was told of in a reply
	sent    map[int64]sending  // its writes, by the time written, in microseconds
	session *simSession        // the last one
	leaving time.Duration      // when its context ended, 0 before
	over    bool

	second, requests int // how many requests in which second
}

func newSimCampaign(c *simCandidate, clock clock) *simCampaign {
	k := &simCampaign{
		simCandidate: c, LeaseInterface: c.link.leases, clock: clock, identity: c.identity,
		label: fmt.Sprintf("%s-%d", c.name, c.campaigns),
		uids:  map[types.UID]bool{}, terms: map[tenureKey]bool{}, sent: map[int64]sending{},
	}
	if k.identity == "" {
		k.identity = k.label
	}
	return k
}

// run campaigns once: until ctx ends or the body has had enough.
func (k *simCampaign) run(ctx context.Context) (err error) {
	s := k.sim
	policies := uint64(0)
	opts := []Option{
		WithLease(name), WithNamespace(ns), WithClient(k), WithIdentity(k.identity), unlogged, WithError(&err),
		WithDuration(k.duration), WithRenewDeadline(k.renewDeadline), WithRenewInterval(k.renewInterval),
		WithCreateMode(k.mode), withClock(k.clock), WithOverrun(s.judge.overrun),
		WithBackOff(func() backoff.BackOff {
			policies++
			return &simBackOff{dice: roll(s.seed, 6, k.link.id, uint64(k.campaigns), policies)}
		}),
		func(o *options) {
			o.chance = func(n time.Duration) time.Duration {
				luck := roll(s.seed, 5, k.link.id, uint64(k.campaigns), uint64(s.now()))
				return time.Duration(luck.Int64N(int64(n)))
			}
		},
	}
	if k.process != nil {
		opts = append(opts, WithClient(k.process), func(o *options) {
			o.many = k.many
			o.wrap = func(coordinationv1client.LeaseInterface) coordinationv1client.LeaseInterface { return k }
		})
	}
	s.judge.note(k.label, "campaigns")
	defer context.AfterFunc(ctx, func() { s.judge.leaves(k) })()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if r := recover(); r != nil && r != errBody {
				panic(r)
			}
		}()
		k.lead(ctx, opts)
	}()
	<-done
	s.judge.campaignEnded(k, err)
	return err
}

// A simProcess is what candidates share that are one process: a watch, by the link of one of them.
type simProcess struct {
	*link

	mu              sync.Mutex // protects following
	second, watches int        // how many watches were opened in which second
}

func (p *simProcess) Leases(string) coordinationv1client.LeaseInterface {
	return sharedWatch{p.link.leases, p}
}

type sharedWatch struct {
	coordinationv1client.LeaseInterface
	process *simProcess
}

func (w sharedWatch) Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	p := w.process
	p.mu.Lock()
	if second := int(p.sim.now() / time.Second); second != p.second {
		p.second, p.watches = second, 0
	}
	p.watches++
	storm := p.watches > 20
	p.mu.Unlock()
	switch {
	case storm:
		p.sim.judge.fault("%s: more than 20 shared watches are opened within a second", p.name)
		time.Sleep(time.Second) // so that the world goes on to its end
	case opts.FieldSelector != "":
		p.sim.judge.fault("%s: a campaign's request is made by another", p.name)
	}
	p.sim.judge.detail(p.name, "a shared watch is opened from %q", opts.ResourceVersion)
	defer p.begin()()
	return w.LeaseInterface.Watch(ctx, opts)
}

// simBackOff is defaultBackOff with dice of its own.
type simBackOff struct {
	dice
	last time.Duration
}

func (b *simBackOff) Reset() { b.last = 0 }
func (b *simBackOff) NextBackOff() time.Duration {
	b.last = min(longestDelay, max(50*time.Millisecond, 2*b.last))
	return b.between(b.last/2, b.last*3/2)
}

var errBody = errors.New("the body's own")

// body is what leaders do: work for a while, or until the session ends and some more.
func (k *simCampaign) body(session Session) (more bool) {
	s := k.sim
	x := s.judge.begun(k, session)
	d := roll(s.seed, 7, k.link.id, uint64(s.now()))
	work, how := 1000*time.Hour, ""
	if s.now() < s.calm && d.happens(0.6) {
		work = d.among(10*time.Millisecond, 8*k.duration)
		how = []string{"", "", "", "break", "break", "panic", "goexit", "release"}[d.IntN(8)]
	}
	after := time.Duration(0)
	switch {
	case d.happens(0.3):
		after = d.among(time.Millisecond, time.Second)
	case s.now() < s.calm && d.happens(0.2):
		after = d.among(time.Second, 2*k.duration)
	}
	defer s.judge.bodyEnds(x, how)
	timer := time.NewTimer(work)
	defer timer.Stop()
	select {
	case <-session.Done():
		time.Sleep(after)
		return true
	case <-timer.C:
	}
	switch how {
	case "break":
		return false
	case "panic":
		panic(errBody)
	case "goexit":
		runtime.Goexit()
	case "release":
		s.judge.bodyEnds(x, "releases") // nothing that needs the lease runs any more
		if err := session.Release(); err == nil && session.Err() == nil {
			s.judge.fault("%s: released, but it has not ended", k.label)
		}
		time.Sleep(min(after, max(0, s.calm-s.now()))) // in fair weather it campaigns
	}
	return true
}

// Leases returns k itself: there is one namespace in the world.
func (k *simCampaign) Leases(string) coordinationv1client.LeaseInterface { return k }

// reply tells the judge what k has been told.
func (k *simCampaign) reply(l *coordinationv1.Lease, err error) (*coordinationv1.Lease, error) {
	if err == nil {
		k.sim.judge.told(k, l)
	}
	return l, err
}

func (k *simCampaign) Get(ctx context.Context, name string, opts metav1.GetOptions) (*coordinationv1.Lease, error) {
	k.sim.judge.requested(ctx, k, "get")
	defer k.link.begin()()
	return k.reply(k.LeaseInterface.Get(ctx, name, opts))
}

func (k *simCampaign) Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	k.sim.judge.requested(ctx, k, "watch")
	defer k.link.begin()()
	return k.LeaseInterface.Watch(ctx, opts)
}

func (k *simCampaign) Create(ctx context.Context, l *coordinationv1.Lease, opts metav1.CreateOptions) (*coordinationv1.Lease, error) {
	k.sim.judge.requested(ctx, k, "create")
	k.sim.judge.claimed(k, l.Spec.HolderIdentity, l.Spec.AcquireTime)
	defer k.link.begin()()
	return k.reply(k.LeaseInterface.Create(ctx, l, opts))
}

func (k *simCampaign) Apply(ctx context.Context, l *applycoordinationv1.LeaseApplyConfiguration, opts metav1.ApplyOptions) (*coordinationv1.Lease, error) {
	k.sim.judge.requested(ctx, k, "apply")
	if l.ResourceVersion == nil || *l.ResourceVersion == "" || l.UID == nil || *l.UID == "" {
		k.sim.judge.fault("%s: claims the lease without a precondition", k.label)
	}
	k.sim.judge.claimed(k, l.Spec.HolderIdentity, l.Spec.AcquireTime)
	defer k.link.begin()()
	return k.reply(k.LeaseInterface.Apply(ctx, l, opts))
}

func (k *simCampaign) Patch(ctx context.Context, name string, pt types.PatchType, data []byte, opts metav1.PatchOptions, sub ...string) (*coordinationv1.Lease, error) {
	k.sim.judge.requested(ctx, k, "patch")
	k.sim.judge.patched(k, data)
	defer k.link.begin()()
	return k.reply(k.LeaseInterface.Patch(ctx, name, pt, data, opts, sub...))
}

// readPatch finds in a merge patch its precondition and the renewal time that it sets, if any.
func readPatch(data []byte) (version uint64, renewed int64) {
	value := func(field string) string {
		_, rest, _ := bytes.Cut(data, []byte(`"`+field+`":"`))
		value, _, _ := bytes.Cut(rest, []byte(`"`))
		return string(value)
	}
	version, _ = strconv.ParseUint(value("resourceVersion"), 10, 64)
	if t, err := time.Parse(metav1.RFC3339Micro, value("renewTime")); err == nil {
		renewed = t.UnixMicro()
	}
	return version, renewed
}

// A simElector is a process with client-go's leaderelection.
type simElector struct {
	coordinationv1client.LeaseInterface
	sim    *sim
	name   string
	link   *link
	config leaderelection.LeaderElectionConfig
	downs  []interval

	// What follows is protected by the judge's mu.
	sent    map[int64]time.Time // when it began to send a write, by the time written
	proven  time.Time           // when it began to send the last write that took effect
	leading bool
	working int       // how many works run
	term    tenureKey // which the last write showed
}

// jitterRand is the chance of client-go's retries; made to be overridden by tests.
//
//go:linkname jitterRand k8s.io/apimachinery/pkg/util/wait.jitterRand
var jitterRand func() float64

func init() {
	jitterRand = func() float64 { return roll(8, uint64(time.Now().UnixNano())).Float64() }
}

func newSimElector(s *sim, name string, base time.Duration, d dice) *simElector {
	base = max(base, 3*time.Second)
	e := &simElector{sim: s, name: name, link: s.newLink(name), sent: map[int64]time.Time{}}
	e.config = leaderelection.LeaderElectionConfig{
		LeaseDuration: base, RenewDeadline: base * 2 / 3, RetryPeriod: base * 2 / 15, ReleaseOnCancel: d.happens(0.5),
	}
	return e
}

func (e *simElector) String() string {
	return fmt.Sprintf("%s: duration %v, deadline %v, retry period %v, releases %v",
		e.name, e.config.LeaseDuration, e.config.RenewDeadline, e.config.RetryPeriod, e.config.ReleaseOnCancel)
}

// live runs electors until the world ends; each leads once at most.
func (e *simElector) live() {
	e.LeaseInterface = e.link.leases
	pauses := roll(e.sim.seed, 9, e.link.id)
	e.config.Lock = &resourcelock.LeaseLock{
		LeaseMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Client: e,
		LockConfig: resourcelock.ResourceLockConfig{Identity: e.name},
	}
	winding := pauses.among(time.Millisecond, time.Second)
	e.config.Callbacks = leaderelection.LeaderCallbacks{
		OnStartedLeading: func(ctx context.Context) {
			e.sim.running.Add(1) // while live still counts
			defer e.sim.running.Done()
			e.sim.judge.electorBegins(e)
			<-ctx.Done()
			e.sim.judge.electorEnds(e)
			time.Sleep(winding)
			e.sim.judge.electorIdle(e)
		},
		OnStoppedLeading: func() {},
	}
	for e.sim.ctx.Err() == nil {
		if till := nextDown(e.downs, e.sim.now()); till > e.sim.now() {
			elector, err := leaderelection.NewLeaderElector(e.config)
			if err != nil {
				e.sim.judge.fault("%v", err)
				return
			}
			ctx, cancel := context.WithTimeout(e.sim.ctx, till-e.sim.now())
			elector.Run(ctx)
			cancel()
			time.Sleep(time.Nanosecond) // for OnStartedLeading to learn of it
		}
		e.sim.sleepUntil(max(upAgain(e.downs, e.sim.now()), e.sim.now()+pauses.among(100*time.Millisecond, 10*time.Second)))
	}
}

func (e *simElector) Leases(string) coordinationv1client.LeaseInterface { return e }

// timeout is what client-go sets for its client.
func (e *simElector) timeout(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, e.config.RenewDeadline/2)
}

func (e *simElector) Get(ctx context.Context, name string, opts metav1.GetOptions) (*coordinationv1.Lease, error) {
	ctx, cancel := e.timeout(ctx)
	defer cancel()
	defer e.link.begin()()
	return e.LeaseInterface.Get(ctx, name, opts)
}

func (e *simElector) Create(ctx context.Context, l *coordinationv1.Lease, opts metav1.CreateOptions) (*coordinationv1.Lease, error) {
	ctx, cancel := e.timeout(ctx)
	defer cancel()
	e.sim.judge.electorWrites(e, l)
	defer e.link.begin()()
	return e.LeaseInterface.Create(ctx, l, opts)
}

func (e *simElector) Update(ctx context.Context, l *coordinationv1.Lease, opts metav1.UpdateOptions) (*coordinationv1.Lease, error) {
	ctx, cancel := e.timeout(ctx)
	defer cancel()
	e.sim.judge.electorWrites(e, l)
	defer e.link.begin()()
	return e.LeaseInterface.Update(ctx, l, opts)
}
