package sim

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/types"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/internal/oracle"
)

type interval struct{ from, to time.Duration }

// A call is the function by which a candidate campaigns. All of them give the same guarantees.
type call int

const (
	sessions call = iota
	acquire
	tryAcquire
	do
)

func (c call) String() string { return []string{"Sessions", "Acquire", "TryAcquire", "Do"}[c] }

type settings struct {
	duration, renewDeadline, renewInterval time.Duration

	process    *process // whose watch it shares; nil if it shares none
	sharedFrom int      // from how many campaigns on

	mode     leasehold.CreateMode
	identity string // "" for a new one for each campaign
	rate     float64
	call     call
	deletes  bool // WithDeleteOnRelease
	reclaims bool // WithReclaim

	slots    int  // WithSlots; 0 for none
	priority *int // WithPriority; nil for none
	yields   bool // WithYield

	beat    time.Duration // WithBeat; 0 for none
	address string        // WithAdvertise; "" for none
}

// A candidate is a process that campaigns again and again.
type candidate struct {
	settings
	world     *World
	name      string
	link      *link
	suspended atomic.Int64 // for how long its machine was
	downtimes []interval   // when the process does not run

	campaigns int
}

func (c *candidate) String() string {
	identity := c.identity
	if identity == "" {
		identity = c.name + "-N"
	}
	s := fmt.Sprintf(
		"%s: identity %s, duration %v, deadline %v, interval %v, mode %d, clock rate %.3f, %v, deletes %v, reclaims %v",
		c.name, identity, c.duration, c.renewDeadline, c.renewInterval, c.mode, c.rate, c.call, c.deletes, c.reclaims)
	if c.slots > 0 {
		s += fmt.Sprintf(", %d slots", c.slots)
	}
	if c.priority != nil {
		s += fmt.Sprintf(", priority %d", *c.priority)
	}
	if c.yields {
		s += ", yields"
	}
	if c.beat > 0 {
		s += fmt.Sprintf(", beat %v", c.beat)
	}
	if c.process != nil {
		s += fmt.Sprintf(", shares the watch of %s if %d do", c.process.name, c.sharedFrom)
	}
	return s
}

// live runs campaigns until the world ends.
func (c *candidate) live() {
	clock := machineClock{rateClock{c.world.start, c.rate}, &c.suspended}
	pauses := newRNG(c.world.seed, 4, c.link.id)
	for c.world.ctx.Err() == nil {
		pause := pauses.logUniform(30*time.Millisecond, 9*time.Second)
		ctx, cancel := context.WithCancelCause(c.world.ctx)
		if until := nextStop(c.downtimes, c.world.now()); until > c.world.now() {
			stop := time.AfterFunc(until-c.world.now(), func() { cancel(errStopped) })
			c.campaigns++
			err := newCampaign(c, clock).run(ctx)
			if errors.Is(err, leasehold.ErrExists) || errors.Is(err, leasehold.ErrNotFound) {
				pause += 10 * time.Second // no use in trying again soon
			}
			stop.Stop()
		}
		cancel(nil)
		now := c.world.now()
		if now+pause > c.world.faultsEnd && pause < 10*time.Second {
			pause = max(30*time.Millisecond, c.world.faultsEnd-now) // somebody can lead once the faults are over
		}
		c.world.sleepUntil(max(nextStart(c.downtimes, now), now+pause))
	}
}

// toldGone returns when the process was last told falsely that the Lease does not exist.
func (c *candidate) toldGone() time.Duration {
	told := c.link.toldGone.Load()
	if c.process != nil {
		told = max(told, c.process.toldGone.Load())
	}
	return time.Duration(told)
}

// suspend suspends the machine for d.
func (c *candidate) suspend(d time.Duration) {
	c.suspended.Add(int64(d))
	c.link.lastFault.Store(int64(c.world.now()))
}

var errStopped = errors.New("the process is told to stop")

// nextStop returns when a process that runs now has to stop; now if it may not run.
func nextStop(downtimes []interval, now time.Duration) time.Duration {
	next := 1000 * time.Hour
	for _, d := range downtimes {
		if d.to > now {
			next = min(next, max(now, d.from))
		}
	}
	return next
}

// nextStart returns when a process may run, at or after now.
func nextStart(downtimes []interval, now time.Duration) time.Duration {
	for again := true; again; {
		again = false
		for _, d := range downtimes {
			if d.from <= now && now < d.to {
				now, again = d.to, true
			}
		}
	}
	return now
}

// A campaign is one campaign and its client, which shows each request to the checker (client.go).
type campaign struct {
	*candidate
	coordinationv1client.LeaseInterface
	clock    Clock
	identity string
	label    string

	// What follows is protected by the checker's mu.
	uids    map[types.UID]bool  // the Leases that it was told of in a reply
	told    map[oracle.Key]bool // the terms that it was told of in a reply
	sent    map[int64]sendTime  // its writes, by the time written, in microseconds
	session *session            // the last one
	ctxOver time.Duration       // when its context ended, 0 before
	over    bool

	second, requests int // how many requests in which second
}

func newCampaign(c *candidate, clock Clock) *campaign {
	k := &campaign{
		candidate: c, LeaseInterface: c.link.leases, clock: clock, identity: c.identity,
		label: fmt.Sprintf("%s-%d", c.name, c.campaigns),
		uids:  map[types.UID]bool{}, told: map[oracle.Key]bool{}, sent: map[int64]sendTime{},
	}
	if k.identity == "" {
		k.identity = k.label
	}
	return k
}

// run campaigns once: until ctx ends or the body leaves the loop.
func (k *campaign) run(ctx context.Context) (err error) {
	w := k.world
	id, number := k.link.id, uint64(k.campaigns)
	chance := w.chance
	if k.identity == duplicate {
		chance = w.namesakeChance
	}
	opts := []leasehold.Option{
		leasehold.WithLease(name), leasehold.WithNamespace(namespace), leasehold.WithIdentity(k.identity),
		leasehold.WithDuration(k.duration), leasehold.WithRenewDeadline(k.renewDeadline),
		leasehold.WithRenewInterval(k.renewInterval),
		leasehold.WithCreateMode(k.mode), leasehold.WithOverrun(w.checker.overrun), leasehold.WithError(&err),
		unlogged(),
		w.hooks.Clock(k.clock), chance(w.seed, 5, id, number), backOff(w.seed, 6, id, number),
	}
	if k.process == nil {
		opts = append(opts, leasehold.WithClient(k))
	} else {
		opts = append(opts, leasehold.WithClient(k.process), w.hooks.SharedFrom(k.sharedFrom), w.hooks.OwnRequests(k))
	}
	if k.deletes {
		opts = append(opts, leasehold.WithDeleteOnRelease())
	}
	if k.reclaims {
		opts = append(opts, leasehold.WithReclaim())
	}
	if k.slots > 0 {
		opts = append(opts, leasehold.WithSlots(k.slots))
	}
	if k.priority != nil {
		opts = append(opts, leasehold.WithPriority(*k.priority))
	}
	if k.yields {
		opts = append(opts, leasehold.WithYield())
	}
	if k.beat > 0 {
		opts = append(opts, leasehold.WithBeat(k.beat))
	}
	if k.address != "" {
		opts = append(opts, leasehold.WithAdvertise(k.address))
	}
	w.lastBegan.Store(int64(w.now()))
	w.checker.note(k.label, "campaigns")
	defer context.AfterFunc(ctx, func() { w.checker.ctxEnded(k) })()
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
	w.checker.campaignEnded(k, err)
	return err
}

// lead campaigns by the candidate's call.
func (k *campaign) lead(ctx context.Context, opts []leasehold.Option) {
	acquireCall := leasehold.Acquire
	switch k.call {
	case sessions:
		for s := range leasehold.Sessions(ctx, opts...) {
			if !k.body(s) {
				return
			}
		}
	case do:
		leasehold.Do(ctx, func(ctx context.Context) (bool, error) {
			s, ok := leasehold.FromContext(ctx)
			if !ok {
				k.world.checker.violation("%s: Do's context has no session", k.label)
			}
			return k.body(s), nil
		}, opts...)
	case tryAcquire:
		acquireCall = leasehold.TryAcquire
		fallthrough
	case acquire:
		s, err := acquireCall(ctx, opts...)
		if err != nil {
			return
		}
		defer s.Release()
		k.body(s)
	}
}

var errBody = errors.New("the body's own")

// body is the work of leaders: for a while, or until the session ends and a little longer. It reports whether the loop
// goes on.
func (k *campaign) body(s leasehold.Session) (more bool) {
	w := k.world
	x := w.checker.sessionBegins(k, s)
	r := newRNG(w.seed, 7, k.link.id, uint64(w.now()))
	work, how := 1000*time.Hour, ""
	if w.now() < w.faultsEnd && r.chance(0.6) {
		work = r.logUniform(10*time.Millisecond, 8*k.duration)
		how = []string{"", "", "", "break", "break", "panic", "goexit", "release"}[r.IntN(8)]
	}
	after := time.Duration(0)
	switch {
	case r.chance(0.3):
		after = r.logUniform(time.Millisecond, time.Second)
	case w.now() < w.faultsEnd && r.chance(0.2):
		after = r.logUniform(time.Second, 2*k.duration)
	}
	defer w.checker.bodyEnds(x, how)
	defer k.beats(x)()
	timer := time.NewTimer(work)
	defer timer.Stop()
	select {
	case <-s.Done():
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
		w.checker.bodyEnds(x, "releases") // nothing that needs the lease runs any more
		if err := w.release(s); err == nil && s.Err() == nil {
			w.checker.violation("%s: released, but the session has not ended", k.label)
		}
		time.Sleep(min(after, max(0, w.faultsEnd-w.now()))) // once the faults are over it campaigns
	}
	return true
}

// beats calls Beat of a session in time until the function that it returns is called or, of some, the work is stuck.
func (k *campaign) beats(x *session) (end func()) {
	if k.beat == 0 {
		return func() {}
	}
	w := k.world
	r := newRNG(w.seed, 27, k.link.id, uint64(w.now()))
	stuck := 1000 * time.Hour
	if last := w.faultsEnd - 2*k.beat; w.now() < last && r.chance(0.3) {
		stuck = r.uniform(w.now(), last)
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		timer := time.NewTimer(0)
		defer timer.Stop()
		for {
			select {
			case <-timer.C:
			case <-done:
				return
			}
			if w.now() >= stuck {
				w.checker.note(k.label, "its work is stuck")
				<-done
				return
			}
			w.checker.beats(x)
			timer.Reset(r.logUniform(k.beat/20, k.beat/2))
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}

// release ends a session or, in some worlds, hands it over to a candidate, which may not run.
func (w *World) release(s leasehold.Session) error {
	r := newRNG(w.seed, 24, uint64(w.now()))
	if !w.prioritized || r.chance(0.3) {
		return s.Release()
	}
	return s.HandOver(w.candidates[r.IntN(len(w.candidates))].identity)
}

// A process is what the candidates of one process share: a watch, by the link of one of them.
type process struct {
	*link

	mu              sync.Mutex // protects following
	second, watches int        // how many watches were opened in which second
}

func (p *process) Leases(string) coordinationv1client.LeaseInterface {
	return sharedWatch{p.link.leases, p}
}

type sharedWatch struct {
	coordinationv1client.LeaseInterface
	process *process
}

func (s sharedWatch) Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	p := s.process
	p.mu.Lock()
	if second := int(p.world.now() / time.Second); second != p.second {
		p.second, p.watches = second, 0
	}
	p.watches++
	tooMany := p.watches > 20
	p.mu.Unlock()
	switch {
	case tooMany:
		p.world.checker.violation("%s: more than 20 shared watches are opened within a second", p.name)
		time.Sleep(time.Second) // else the world would never end
	case opts.FieldSelector != "":
		p.world.checker.violation("%s: a campaign's request is made by another", p.name)
	}
	p.world.checker.detail(p.name, "a shared watch is opened from %q", opts.ResourceVersion)
	defer p.send()()
	return s.LeaseInterface.Watch(ctx, opts)
}
