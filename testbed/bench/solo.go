package main

import (
	"context"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/testbed/internal/clientgo"
)

// A solo is a process with one candidate, which runs as its users run it: with its own transport, and with nothing of
// the bench between it and the network.
type solo struct {
	task
	leading atomic.Int64
	updates atomic.Int64      // by an elector
	monitor leasehold.Monitor // of leasehold
	loop    sync.WaitGroup
}

func (s *solo) start(ctx context.Context, cfg *rest.Config) error {
	if s.Work == workLeasehold {
		s.loop.Go(func() { s.sessions(ctx, cfg) })
		return nil
	}
	client, err := coordinationv1client.NewForConfig(cfg)
	if err == nil {
		s.loop.Go(func() { s.elect(ctx, client) })
	}
	return err
}

func (s *solo) sessions(ctx context.Context, cfg *rest.Config) {
	for session := range leasehold.Sessions(ctx,
		leasehold.WithRESTConfig(cfg), leasehold.WithNamespace(metav1.NamespaceDefault), leasehold.WithLease(s.Leases),
		leasehold.WithIdentity(s.Identity), leasehold.WithDuration(s.Duration), leasehold.WithMonitor(&s.monitor),
		leasehold.WithLogger(slog.New(slog.DiscardHandler)),
	) {
		s.lead(session.Context())
	}
}

func (s *solo) elect(ctx context.Context, client coordinationv1client.LeasesGetter) {
	clientgo.Candidate{
		Client: countingGetter{client, &s.updates}, Namespace: metav1.NamespaceDefault, Lease: s.Leases,
		Identity: s.Identity,
		Duration: s.Duration, Deadline: s.Deadline, Period: s.Period, Away: s.Duration / 5,
	}.Run(ctx, s.lead)
}

func (s *solo) lead(term context.Context) {
	s.leading.Add(1)
	<-term.Done()
	s.leading.Add(-1)
}

func (s *solo) census(bool) census {
	c := ownCost()
	c.Leading, c.Renewals = int(s.leading.Load()), s.updates.Load()
	for _, l := range s.monitor.Leases() {
		c.Renewals += int64(l.Renewals)
		if l.Following == "watch" && l.Holder != nil {
			c.Following++
		}
	}
	return c
}

func (s *solo) wait() { s.loop.Wait() }

// ownCost is what this process has used since it began.
func ownCost() (c census) {
	c.CPU, _ = ownCPUTime()
	var usage syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage) // it knows the caller
	c.Switches = usage.Nvcsw + usage.Nivcsw
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	c.Allocs, c.AllocBytes = memory.Mallocs, memory.TotalAlloc
	return c
}

// A countingGetter counts the updates of Leases, by which an elector renews.
type countingGetter struct {
	coordinationv1client.LeasesGetter
	updates *atomic.Int64
}

func (c countingGetter) Leases(namespace string) coordinationv1client.LeaseInterface {
	return countingLeases{c.LeasesGetter.Leases(namespace), c.updates}
}

type countingLeases struct {
	coordinationv1client.LeaseInterface
	updates *atomic.Int64
}

func (c countingLeases) Update(ctx context.Context, l *coordinationv1.Lease,
	o metav1.UpdateOptions) (*coordinationv1.Lease, error) {
	c.updates.Add(1)
	return c.LeaseInterface.Update(ctx, l, o)
}
