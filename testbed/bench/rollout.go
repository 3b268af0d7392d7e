package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/testbed/internal/clientgo"
)

// A rolling is a kind of program that a rolling update replaces.
type rolling struct {
	what                string
	work                string // workElector or workLeasehold
	prioritized, yields bool
}

var rollings = []rolling{
	{what: "client-go", work: workElector},
	{what: "leasehold", work: workLeasehold},
	{what: "with the revision as WithPriority", work: workLeasehold, prioritized: true},
	{what: "and WithYield", work: workLeasehold, prioritized: true, yields: true},
}

const (
	startsAfter = time.Second // from SIGTERM of an old replica to the start of the program of the next new one
	readyAfter  = time.Second // from then until the new one counts as available (minReadySeconds)
)

// A rolled is what became of the lease in a rolling update.
type rolled struct {
	handovers int
	lost      int           // terms that ended because the lease was not renewed; only of leasehold
	without   time.Duration // how long nobody led
}

// rollout plays rolling updates as a Deployment with maxSurge 1 and maxUnavailable 0 does them: a new replica starts
// and becomes available, an old one gets SIGTERM, and the next new one starts without waiting for its end. Each replica
// is a process. Which old one is stopped does not depend on who leads.
func (b *bench) rollout() error {
	for _, replicas := range b.rollouts {
		results := make([][]rolled, len(rollings))
		for round := range b.rolls {
			r := rand.New(rand.NewPCG(uint64(replicas), uint64(round))) // the same for all
			stops := r.Perm(replicas)
			for i, kind := range rollings {
				result, err := b.rollOut(kind, stops)
				if err != nil {
					return fmt.Errorf("%s: %w", kind.what, err)
				}
				results[i] = append(results[i], result)
			}
		}
		for i, kind := range rollings {
			var handovers, lost []int
			var without []string
			for _, r := range results[i] {
				handovers, lost = append(handovers, r.handovers), append(lost, r.lost)
				without = append(without, format(r.without.Seconds(), "s"))
			}
			b.report.note("rollout of %d replicas, %s, in each round: %v handovers, %v sessions lost, "+
				"nobody leads for %v.", replicas, kind.what, handovers, lost, without)
		}
		for i, kind := range rollings[1:] {
			what := fmt.Sprintf("rollout of %d replicas", replicas)
			if i > 0 {
				what += " " + kind.what
			}
			handovers := func(all []rolled) *summary {
				return summarizeBy(all, func(r rolled) float64 { return float64(r.handovers) })
			}
			without := func(all []rolled) *summary {
				return summarizeBy(all, func(r rolled) float64 { return r.without.Seconds() })
			}
			theirs, ours := results[0], results[1+i]
			b.report.add(row{What: what + ": handovers", ClientGo: handovers(theirs), Leasehold: handovers(ours)}, nil)
			b.report.add(row{What: what + ": nobody leads", Unit: "s", ClientGo: without(theirs),
				Leasehold: without(ours)}, nil)
		}
	}
	return nil
}

// rollOut replaces as many replicas as stops has, in its order.
func (b *bench) rollOut(kind rolling, stops []int) (result rolled, err error) {
	lease := b.lease("rollout")
	var all []*replica
	defer func() {
		for _, r := range all {
			err = errors.Join(err, r.end())
		}
	}()
	start := func(revision, i int) error {
		r, err := b.startReplica(task{
			Work: workReplica, Of: kind.work, Kubeconfig: b.server.Kubeconfig(), Leases: lease,
			Identity: fmt.Sprintf("r%d-%d", revision, i), Prioritized: kind.prioritized, Priority: revision,
			Yields: kind.yields, Duration: b.duration, Deadline: b.deadline, Period: b.period,
		})
		if err == nil {
			all = append(all, r)
		}
		return err
	}
	for i := range stops {
		if err := start(1, i); err != nil {
			return result, err
		}
	}
	if err := b.awaitStint(all); err != nil {
		return result, err
	}
	for i, stopped := range stops {
		if err := b.sleep(startsAfter); err != nil {
			return result, err
		}
		if err := start(2, i); err != nil {
			return result, err
		}
		if err := b.sleep(readyAfter); err != nil {
			return result, err
		}
		if err := all[stopped].terminate(); err != nil {
			return result, err
		}
	}
	if err := b.awaitStint(all[len(stops):]); err != nil {
		return result, err
	}
	over := time.Now()
	var stints []stint
	for _, r := range all {
		if err := r.end(); err != nil {
			return result, err
		}
		for _, s := range r.stints {
			if s.Begin.Before(over) {
				stints = append(stints, s)
			}
		}
	}
	slices.SortFunc(stints, func(a, b stint) int { return cmp.Compare(a.Begin.UnixNano(), b.Begin.UnixNano()) })
	for i, s := range stints[1:] {
		result.handovers++
		if stints[i].Lost {
			result.lost++
		}
		without := s.Begin.Sub(stints[i].End)
		if without < 0 && kind.work == workLeasehold {
			return result, fmt.Errorf("two lead for %v", -without)
		}
		result.without += max(0, without)
	}
	return result, nil
}

// awaitStint waits until one of the replicas leads.
func (b *bench) awaitStint(replicas []*replica) error {
	for began := time.Now(); time.Since(began) < time.Minute; {
		for _, r := range replicas {
			if r.leads() {
				return nil
			}
		}
		if err := b.sleep(time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("nobody leads within a minute")
}

// A stint is one term of one replica, by the clock that all of them share. Its end is zero while it lasts.
type stint struct {
	Begin time.Time `json:"begin"`
	End   time.Time `json:"end"`
	Lost  bool      `json:"lost"` // it ended because the lease was lost
}

// A replica is a process with one candidate. It says when its program runs, and when its stints begin and end.
type replica struct {
	*process
	done chan struct{} // closed when it has said all
	err  error         // what was wrong with that; readable once done is closed

	mu     sync.Mutex // protects stints until done is closed
	stints []stint
}

// startReplica returns when the program of the replica runs.
func (b *bench) startReplica(t task) (*replica, error) {
	p, err := b.newProcess(t)
	if err != nil {
		return nil, err
	}
	r := &replica{process: p, done: make(chan struct{})}
	running := make(chan error, 1)
	go func() {
		defer close(r.done)
		running <- r.answers.Decode(new(stint))
		r.err = r.listen()
	}()
	runs, err := receive(b, "replica", running)
	if err := errors.Join(err, runs); err != nil {
		return nil, errors.Join(err, r.end())
	}
	return r, nil
}

// listen reads of the stints of the process, until it has ended.
func (r *replica) listen() error {
	for {
		var s stint
		if err := r.answers.Decode(&s); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		r.mu.Lock()
		if n := len(r.stints); n > 0 && r.stints[n-1].Begin.Equal(s.Begin) {
			r.stints[n-1] = s
		} else {
			r.stints = append(r.stints, s)
		}
		r.mu.Unlock()
	}
}

func (r *replica) leads() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(r.stints)
	return n > 0 && r.stints[n-1].End.IsZero()
}

// terminate asks the process to end, as the kubelet does.
func (r *replica) terminate() error { return r.cmd.Process.Signal(syscall.SIGTERM) }

// end ends the process, if it has not ended by itself. It may be called again.
func (r *replica) end() error {
	if r.ended {
		return nil
	}
	r.in.Close()
	kill := time.AfterFunc(tooLong, func() { r.cmd.Process.Kill() })
	defer kill.Stop()
	<-r.done // before the process is waited for: that closes the pipe
	err := errors.Join(r.err, r.process.end())
	now := time.Now()
	for i, s := range r.stints {
		if s.End.IsZero() {
			r.stints[i].End = now
		}
	}
	return err
}

// runReplica campaigns until SIGTERM, or until in ends. It writes an empty stint to out once it runs, and then each of
// its stints twice: when it begins, and when its work has ended.
func runReplica(t task, cfg *rest.Config, in *bufio.Scanner, out io.Writer) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() {
		in.Scan()
		stop()
	}()
	says := json.NewEncoder(out)
	if err := says.Encode(stint{}); err != nil {
		return err
	}
	var leading sync.Mutex // an elector ends before its work has
	lead := func(term context.Context) {
		leading.Lock()
		defer leading.Unlock()
		s := stint{Begin: time.Now()}
		says.Encode(s) // what nobody reads is of no use to anybody
		<-term.Done()
		s.End, s.Lost = time.Now(), errors.Is(context.Cause(term), leasehold.ErrLost)
		says.Encode(s)
	}
	if t.Of == workElector {
		client, err := coordinationv1client.NewForConfig(cfg)
		if err != nil {
			return err
		}
		clientgo.Candidate{
			Client: client, Namespace: metav1.NamespaceDefault, Lease: t.Leases, Identity: t.Identity,
			Duration: t.Duration, Deadline: t.Deadline, Period: t.Period, Away: t.Duration / 5,
		}.Run(ctx, lead)
		leading.Lock()
		return nil
	}
	opts := []leasehold.Option{
		leasehold.WithRESTConfig(cfg), leasehold.WithNamespace(metav1.NamespaceDefault), leasehold.WithLease(t.Leases),
		leasehold.WithIdentity(t.Identity), leasehold.WithDuration(t.Duration),
		leasehold.WithLogger(slog.New(slog.DiscardHandler)),
	}
	if t.Prioritized {
		opts = append(opts, leasehold.WithPriority(t.Priority))
	}
	if t.Yields {
		opts = append(opts, leasehold.WithYield())
	}
	for s := range leasehold.Sessions(ctx, opts...) {
		lead(s.Context())
	}
	return nil
}
