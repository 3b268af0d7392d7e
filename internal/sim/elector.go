package sim

import (
	"context"
	"fmt"
	"time"
	_ "unsafe" // for go:linkname

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/leasehold-go/leasehold/internal/oracle"
)

// An elector is a process with client-go's leaderelection.
type elector struct {
	coordinationv1client.LeaseInterface
	world     *World
	name      string
	link      *link
	config    leaderelection.LeaderElectionConfig
	downtimes []interval

	// What follows is protected by the checker's mu.
	sent    map[int64]time.Time // when it began to send a write, by the time written
	renewed time.Time           // when it began to send the last write that took effect
	leading bool
	working int          // how many of its works run
	term    *oracle.Term // which the last write showed
}

// jitterRand is the chance of client-go's retries. apimachinery means tests to override it.
//
//go:linkname jitterRand k8s.io/apimachinery/pkg/util/wait.jitterRand
var jitterRand func() float64

func init() {
	jitterRand = func() float64 { return newRNG(8, uint64(time.Now().UnixNano())).Float64() }
}

func newElector(w *World, name string, base time.Duration, r rng) *elector {
	base = max(base, 3*time.Second)
	e := &elector{world: w, name: name, link: w.newLink(name), sent: map[int64]time.Time{}}
	e.config = leaderelection.LeaderElectionConfig{
		LeaseDuration: base, RenewDeadline: base * 2 / 3, RetryPeriod: base * 2 / 15, ReleaseOnCancel: r.chance(0.5),
	}
	return e
}

func (e *elector) String() string {
	return fmt.Sprintf("%s: duration %v, deadline %v, retry period %v, releases %v",
		e.name, e.config.LeaseDuration, e.config.RenewDeadline, e.config.RetryPeriod, e.config.ReleaseOnCancel)
}

// live runs electors until the world ends; each leads once at most.
func (e *elector) live() {
	e.LeaseInterface = e.link.leases
	pauses := newRNG(e.world.seed, 9, e.link.id)
	e.config.Lock = &resourcelock.LeaseLock{
		LeaseMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Client: e,
		LockConfig: resourcelock.ResourceLockConfig{Identity: e.name},
	}
	windDown := pauses.logUniform(time.Millisecond, time.Second)
	e.config.Callbacks = leaderelection.LeaderCallbacks{
		OnStartedLeading: func(ctx context.Context) {
			e.world.running.Add(1) // while live still counts
			defer e.world.running.Done()
			e.world.checker.electorBegins(e, ctx)
			<-ctx.Done()
			e.world.checker.electorEnds(e)
			time.Sleep(windDown)
			e.world.checker.electorIdle(e)
		},
		OnStoppedLeading: func() {},
	}
	for e.world.ctx.Err() == nil {
		if until := nextStop(e.downtimes, e.world.now()); until > e.world.now() {
			le, err := leaderelection.NewLeaderElector(e.config)
			if err != nil {
				e.world.checker.violation("%v", err)
				return
			}
			ctx, cancel := context.WithTimeout(e.world.ctx, until-e.world.now())
			le.Run(ctx)
			cancel()
			time.Sleep(time.Nanosecond) // OnStartedLeading learns of it first
		}
		pause := pauses.logUniform(100*time.Millisecond, 10*time.Second)
		e.world.sleepUntil(max(nextStart(e.downtimes, e.world.now()), e.world.now()+pause))
	}
}

// An electorSession is what the oracle asks of an elector that leads.
type electorSession struct {
	*elector
	ctx context.Context
}

func (s electorSession) Context() context.Context { return s.ctx }
func (s electorSession) Err() error               { return s.ctx.Err() }
func (s electorSession) FencingToken() uint64     { return 0 }

// ValidFor returns for how long the elector leads by what it promises. It counts from the reply, so that it may lead on
// beyond that.
func (s electorSession) ValidFor() time.Duration {
	return time.Until(s.renewed.Add(s.config.RenewDeadline))
}

// electorWrites records that an elector sends a write.
func (c *checker) electorWrites(e *elector, l *coordinationv1.Lease) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.sent[oracle.Micros(l.Spec.RenewTime)] = time.Now()
}

// electorBegins checks that an elector begins to lead.
func (c *checker) electorBegins(e *elector, ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.leading = true
	e.working++
	c.log(e.name, "leads")
	if e.term != nil {
		c.oracle.BeginElector(e.name, electorSession{e, ctx}, func() *oracle.Term { return e.term })
	} else {
		c.violationLocked("%s leads without having taken the lease", e.name)
	}
	for _, other := range c.world.electors {
		if other != e && other.leading {
			c.clientGoFaults = append(c.clientGoFaults, twoLead)
			c.log(e.name, "leads beside %s", other.name)
		}
	}
}

// electorEnds records that the context of an elector's work ends.
func (c *checker) electorEnds(e *elector) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.leading = false
	c.log(e.name, "leads no more")
}

// electorIdle records that an elector's work has ended too.
func (c *checker) electorIdle(e *elector) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.working--
}

// Known faults of client-go (docs/comparison.md).
const (
	twoLead         = "two lead"
	ledOn           = "it led on after another took the lease"
	freedAnothers   = "it freed another's lease"
	releasedTooSoon = "it released the lease while its work was running"
)

func (e *elector) Leases(string) coordinationv1client.LeaseInterface { return e }

// timeout is what client-go sets for its client.
func (e *elector) timeout(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, e.config.RenewDeadline/2)
}

func (e *elector) Get(ctx context.Context, name string, opts metav1.GetOptions) (*coordinationv1.Lease, error) {
	ctx, cancel := e.timeout(ctx)
	defer cancel()
	defer e.link.send()()
	return e.LeaseInterface.Get(ctx, name, opts)
}

func (e *elector) Create(
	ctx context.Context, l *coordinationv1.Lease, opts metav1.CreateOptions,
) (*coordinationv1.Lease, error) {
	ctx, cancel := e.timeout(ctx)
	defer cancel()
	e.world.checker.electorWrites(e, l)
	defer e.link.send()()
	return e.LeaseInterface.Create(ctx, l, opts)
}

func (e *elector) Update(
	ctx context.Context, l *coordinationv1.Lease, opts metav1.UpdateOptions,
) (*coordinationv1.Lease, error) {
	ctx, cancel := e.timeout(ctx)
	defer cancel()
	e.world.checker.electorWrites(e, l)
	defer e.link.send()()
	return e.LeaseInterface.Update(ctx, l, opts)
}
