package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
)

// handover measures from when the leader's ctx ends until the work of the only standby begins. The leader then starts
// again as the standby. The floor is what the requests alone take: a patch that releases, its event at another
// connection, and an apply that acquires.
func (b *bench) handover() error {
	floor, err := b.newRaw(b.lease("floor"))
	if err != nil {
		return err
	}
	defer floor.close()
	pair, err := b.newPair(ours, b.timing)
	if err != nil {
		return err
	}
	polled := make([]*duo, min(10, b.polled))
	for i := range polled {
		if polled[i], err = b.newPair(elector, b.timing); err != nil {
			return err
		}
	}
	var raws, samples, polls []float64
	blocks := (b.polled + len(polled) - 1) / len(polled)
	for block := range blocks {
		for range b.handovers*(block+1)/blocks - b.handovers*block/blocks {
			raw, err := floor.handover()
			if err != nil {
				return err
			}
			sample, err := pair.handover()
			if err != nil {
				return err
			}
			raws, samples = append(raws, raw.Seconds()), append(samples, sample.Seconds())
		}
		more, err := handovers(polled)
		if err != nil {
			return err
		}
		polls = append(polls, more...)
	}
	for _, p := range append(polled, pair) {
		if err := b.halt(p.leader, p.standby); err != nil {
			return err
		}
	}
	r := row{
		What: "handover after release, one standby", Unit: "s",
		ClientGo: summarize(polls...), Leasehold: summarize(samples...), Floor: summarize(raws...),
		Goal: "p50 <= 1.1 x floor, p99 <= 3 x floor",
	}
	b.report.add(r, func() bool {
		return r.Leasehold.P50 <= 1.1*r.Floor.P50 && r.Leasehold.P99 <= 3*r.Floor.P50
	})
	b.report.note("handover: the floor's p99 is %s; leasehold's greatest of %d is %s.", format(r.Floor.P99, "s"),
		r.Leasehold.N, format(r.Leasehold.Max, "s"))
	return nil
}

// handovers has each pair of client-go hand over once, all at the same time, because each takes seconds.
func handovers(pairs []*duo) ([]float64, error) {
	samples, errs := make([]float64, len(pairs)), make([]error, len(pairs))
	var all sync.WaitGroup
	for i, p := range pairs {
		all.Go(func() {
			d, err := p.handover()
			samples[i], errs[i] = d.Seconds(), err
		})
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return samples, nil
}

// A duo is a leader and its standby.
type duo struct {
	*bench
	timing
	which           int
	lease           string
	leader, standby *candidate
	started         int
}

func (b *bench) newPair(which int, t timing) (*duo, error) {
	p := &duo{bench: b, timing: t, which: which, lease: b.lease("pair")}
	p.leader = p.start()
	if _, err := receive(b, "first leader", p.leader.led); err != nil {
		return nil, err
	}
	p.standby = p.start()
	return p, nil
}

func (p *duo) start() *candidate {
	p.started++
	return p.bench.start(p.which, p.lease, fmt.Sprintf("%s-%d", p.lease, p.started), p.timing, nil)
}

// ready waits until the standby follows the lease; for one that polls, until some moment between two polls.
func (p *duo) ready() error {
	if p.which == elector {
		return p.sleep(p.period/2 + rand.N(p.period*2))
	}
	if _, err := receive(p.bench, "watch", p.standby.watching); err != nil {
		return err
	}
	return p.sleep(50 * time.Millisecond)
}

func (p *duo) handover() (time.Duration, error) {
	if err := p.ready(); err != nil {
		return 0, err
	}
	begun := time.Now()
	p.leader.stop()
	led, err := receive(p.bench, "new leader", p.standby.led)
	if err != nil {
		return 0, err
	}
	if err := p.halt(p.leader); err != nil {
		return 0, err
	}
	p.leader, p.standby = p.standby, p.start()
	return led.Sub(begun), nil
}

// A raw does what a handover takes, with nothing around it.
type raw struct {
	*bench
	meters        [2]*meter
	holder, other coordinationv1client.LeaseInterface // each with a connection of its own
	name          string
	events        watch.Interface // at the other
	stop          context.CancelFunc
}

func (b *bench) newRaw(name string) (*raw, error) {
	r := &raw{bench: b, name: name}
	for i, to := range []*coordinationv1client.LeaseInterface{&r.holder, &r.other} {
		r.meters[i] = newMeter()
		cfg := r.meters[i].attach(b.server.Config())
		cfg.QPS = -1
		client, err := coordinationv1client.NewForConfig(cfg)
		if err != nil {
			return nil, err
		}
		*to = client.Leases(metav1.NamespaceDefault)
	}
	lease, err := r.holder.Create(b.ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}},
		metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(b.ctx)
	r.stop = cancel
	r.events, err = r.other.Watch(ctx,
		metav1.ListOptions{FieldSelector: "metadata.name=" + name, ResourceVersion: lease.ResourceVersion})
	return r, err
}

func (r *raw) close() {
	r.stop()
	r.events.Stop()
	for _, m := range r.meters {
		m.hangUp()
	}
}

func (r *raw) handover() (time.Duration, error) {
	held, err := acquireRaw(r.ctx, r.holder, r.name, "holder", "")
	if err == nil {
		err = r.await(held.ResourceVersion)
	}
	if err == nil {
		err = r.sleep(50 * time.Millisecond)
	}
	if err != nil {
		return 0, err
	}
	begun := time.Now()
	released := make(chan error, 1)
	go func() {
		_, err := r.holder.Patch(r.ctx, r.name, types.MergePatchType, releaseRaw(held.ResourceVersion),
			metav1.PatchOptions{FieldManager: "bench"})
		released <- err
	}()
	event, err := receive(r.bench, "event", r.events.ResultChan())
	if err != nil {
		return 0, err
	}
	lease, ok := event.Object.(*coordinationv1.Lease)
	if !ok {
		return 0, fmt.Errorf("watch: %v", event)
	}
	taken, err := acquireRaw(r.ctx, r.other, r.name, "other", lease.ResourceVersion)
	took := time.Since(begun)
	if err == nil {
		err = <-released
	}
	if err == nil {
		err = r.await(taken.ResourceVersion)
	}
	return took, err
}

// await waits for the event of a version.
func (r *raw) await(version string) error {
	for {
		event, err := receive(r.bench, "event", r.events.ResultChan())
		if err != nil {
			return err
		}
		if lease, ok := event.Object.(*coordinationv1.Lease); !ok || lease.ResourceVersion == version {
			return nil
		}
	}
}
