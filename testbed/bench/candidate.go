package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/testbed/internal/clientgo"
)

// A timing is how client-go is configured. leasehold is given the same duration, and derives the rest.
type timing struct {
	duration, deadline, period time.Duration
	interval                   time.Duration // of leasehold's renewals; 0 leaves it to leasehold
}

// defaults are what both sides come with.
var defaults = timing{duration: 15 * time.Second, deadline: 10 * time.Second, period: 2 * time.Second}

func (t timing) String() string {
	return fmt.Sprintf("client-go %v/%v/%v with ReleaseOnCancel, leasehold WithDuration(%v)", t.duration, t.deadline,
		t.period, t.duration)
}

// A side is one of the two that are compared: it runs a candidate until ctx ends.
type side func(ctx context.Context, c *candidate, cfg *rest.Config, t timing) error

// sides has both, in the order of the fields of a row.
var sides = [...]side{runElector, runLeasehold}

const (
	elector = iota
	ours
)

// A candidate is one process's part in the leadership of a Lease, as far as that can be had in one process: it shares
// nothing with other candidates, not even a connection.
type candidate struct {
	*meter
	name, lease string
	led         chan time.Time    // when its terms begin
	lost        chan time.Time    // when it is told that one is over, without having asked for it
	yield       chan struct{}     // makes it release the lease, and campaign again
	leads       func()            // called when a term begins, before anything else; may be nil
	monitor     leasehold.Monitor // of leasehold's candidate
	stop        context.CancelFunc
	done        chan error
}

// start starts a candidate of one of the sides, directly at the API server.
func (b *bench) start(which int, lease, name string, t timing, leads func()) *candidate {
	return b.startSide(sides[which], b.server.Config(), lease, name, t, leads)
}

// startSide starts a candidate. It ends with the run at the latest.
func (b *bench) startSide(run side, cfg *rest.Config, lease, name string, t timing, leads func()) *candidate {
	ctx, cancel := context.WithCancel(b.ctx)
	c := &candidate{
		meter: newMeter(), name: name, lease: lease, leads: leads,
		led: make(chan time.Time, 100), lost: make(chan time.Time, 100), yield: make(chan struct{}),
		stop: cancel, done: make(chan error, 1),
	}
	cfg = c.meter.attach(cfg)
	go func() { c.done <- run(ctx, c, cfg, t) }()
	return c
}

// work is what a candidate does while it leads.
func (c *candidate) work(term context.Context) {
	begun := time.Now()
	if c.leads != nil {
		c.leads()
	}
	c.led <- begun
	select {
	case <-term.Done():
		c.lost <- time.Now()
	case <-c.yield:
	}
}

// crash ends a candidate as SIGKILL ends a process: its connections break, and it says nothing more to the server.
func (c *candidate) crash() {
	c.meter.die()
	c.stop()
}

func runLeasehold(ctx context.Context, c *candidate, cfg *rest.Config, t timing) (err error) {
	opts := []leasehold.Option{
		leasehold.WithRESTConfig(cfg), leasehold.WithNamespace(metav1.NamespaceDefault), leasehold.WithLease(c.lease),
		leasehold.WithIdentity(c.name), leasehold.WithDuration(t.duration), leasehold.WithError(&err),
		leasehold.WithLogger(slog.New(slog.DiscardHandler)), leasehold.WithMonitor(&c.monitor),
	}
	if t.interval != 0 {
		opts = append(opts, leasehold.WithRenewInterval(t.interval))
	}
	for s := range leasehold.Sessions(ctx, opts...) {
		c.work(s.Context())
	}
	return err
}

func runElector(ctx context.Context, c *candidate, cfg *rest.Config, t timing) error {
	client, err := coordinationv1client.NewForConfig(cfg)
	if err != nil {
		return err
	}
	clientgo.Candidate{
		Client: client, Namespace: metav1.NamespaceDefault, Lease: c.lease, Identity: c.name,
		Duration: t.duration, Deadline: t.deadline, Period: t.period, Away: t.duration / 5,
	}.Run(ctx, c.work)
	return context.Cause(ctx)
}

// halt ends candidates, and waits until they have released what they held.
func (b *bench) halt(candidates ...*candidate) error {
	for _, c := range candidates {
		c.stop()
	}
	for _, c := range candidates {
		if _, err := receive(b, "end of a candidate", c.done); err != nil {
			return err
		}
		c.meter.hangUp()
	}
	return nil
}
