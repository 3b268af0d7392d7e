package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
)

// failover measures what passes after a crashed leader's lease has run out, until the work of the only standby
// begins. The lease runs out at an observer, which watches: its duration after the observer saw the last renewal. An
// observer that saw it later than the standby did makes a sample too small by that, and it may even be negative. The
// floor is a timer and the raw write that acquires once it has fired, at such moments too, and over a connection of its
// own: after a time without requests, a write takes longer than one of many in a row.
func (b *bench) failover() error {
	o, err := b.observe()
	if err != nil {
		return err
	}
	defer o.close()
	floor, err := b.newRawCrowd(2 * b.pairs)
	if err != nil {
		return err
	}
	defer floor.close()
	var raws []float64
	var samples [len(sides)][]float64
	var later []float64
	for range b.crashes {
		var duos []*duo
		for i := range 2 * b.pairs {
			p, err := b.newPair(i%2, b.timing)
			if err != nil {
				return err
			}
			duos = append(duos, p)
		}
		took, errs := make([]time.Duration, len(duos)), make([]error, len(duos))
		seen := make([]time.Duration, len(duos))
		raw, rawErrs := make([]time.Duration, len(duos)), make([]error, len(duos))
		var all sync.WaitGroup
		for i, p := range duos {
			all.Go(func() { took[i], seen[i], errs[i] = p.failover(o) })
			all.Go(func() { raw[i], rawErrs[i] = floor.failover(i, p.duration) })
		}
		all.Wait()
		for i, p := range duos {
			if err := errors.Join(errs[i], rawErrs[i]); err != nil {
				return err
			}
			raws = append(raws, raw[i].Seconds())
			samples[p.which] = append(samples[p.which], took[i].Seconds())
			if p.which == ours {
				later = append(later, seen[i].Seconds())
			}
			if err := b.halt(p.leader, p.standby); err != nil {
				return err
			}
		}
	}
	r := row{
		What: "failover after a crash, past expiry", Unit: "s",
		ClientGo: summarize(samples[elector]...), Leasehold: summarize(samples[ours]...),
		Floor: summarize(raws...), Goal: "p50 <= 2 x floor, p99 <= 20 ms",
	}
	b.report.add(r, func() bool { return r.Leasehold.P50 <= 2*r.Floor.P50 && r.Leasehold.P99 <= 0.020 })
	sight := summarize(later...)
	b.report.note("failover: leasehold's standby saw the last renewal later than the observer by %s at p50, %s at p99.",
		format(sight.P50, "s"), format(sight.P99, "s"))
	return nil
}

// failover crashes the leader at some moment between renewals. It also returns how much later than the observer
// leasehold's standby saw the last renewal.
func (p *duo) failover(o *observer) (took, later time.Duration, err error) {
	if err := errors.Join(p.ready(), p.sleep(rand.N(p.duration/5))); err != nil {
		return 0, 0, err
	}
	p.leader.crash()
	if err := p.sleep(p.duration / 10); err != nil { // until the standby has seen all that there was
		return 0, 0, err
	}
	var expires time.Time
	for _, l := range p.standby.monitor.Leases() {
		if l.Holder != nil {
			expires = l.Holder.ExpiryTime
		}
	}
	led, err := receive(p.bench, "new leader", p.standby.led)
	if err != nil {
		return 0, 0, err
	}
	last, ok := o.last(p.lease, p.leader.name)
	if !ok {
		return 0, 0, fmt.Errorf("%s was not seen to lead", p.leader.name)
	}
	expiry := last.at.Add(last.duration)
	return led.Sub(expiry), expires.Sub(expiry), nil
}

// failover acquires the i-th Lease when a standby would whose leader crashes at some moment between renewals, and
// returns how long that took.
func (r *rawCrowd) failover(i int, duration time.Duration) (time.Duration, error) {
	leases, m, err := r.rawLeases()
	if err != nil {
		return 0, err
	}
	defer m.hangUp()
	if _, err := leases.Get(r.ctx, r.names[i], metav1.GetOptions{}); err != nil {
		return 0, err
	}
	due := time.Now().Add(duration + rand.N(duration/5))
	if err := r.sleep(time.Until(due)); err != nil {
		return 0, err
	}
	_, err = acquireRaw(r.ctx, leases, r.names[i], "holder", "")
	return time.Since(due), err
}

// An observer watches all Leases, by a connection of its own.
type observer struct {
	meter  *meter
	stop   context.CancelFunc
	events watch.Interface
	done   chan struct{}

	mu   sync.Mutex
	seen map[held]sight // protected by mu
}

// A held is somebody holding a Lease.
type held struct{ lease, holder string }

// A sight is when that was seen last, and how long it was to last.
type sight struct {
	at       time.Time
	duration time.Duration
}

func (b *bench) observe() (*observer, error) {
	o := &observer{meter: newMeter(), done: make(chan struct{}), seen: map[held]sight{}}
	client, err := coordinationv1client.NewForConfig(o.meter.attach(b.server.Config()))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(b.ctx)
	o.stop = cancel
	if o.events, err = client.Leases(metav1.NamespaceDefault).Watch(ctx, metav1.ListOptions{}); err != nil {
		cancel()
		return nil, err
	}
	go o.run()
	return o, nil
}

func (o *observer) run() {
	defer close(o.done)
	for event := range o.events.ResultChan() {
		lease, ok := event.Object.(*coordinationv1.Lease)
		if !ok || lease.Spec.HolderIdentity == nil || lease.Spec.LeaseDurationSeconds == nil {
			continue
		}
		o.mu.Lock()
		o.seen[held{lease.Name, *lease.Spec.HolderIdentity}] = sight{time.Now(),
			time.Duration(*lease.Spec.LeaseDurationSeconds) * time.Second}
		o.mu.Unlock()
	}
}

func (o *observer) last(lease, holder string) (sight, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	s, ok := o.seen[held{lease, holder}]
	return s, ok
}

func (o *observer) close() {
	o.stop()
	o.events.Stop()
	<-o.done
	o.meter.hangUp()
}
