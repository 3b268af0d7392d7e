package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"github.com/leasehold-go/leasehold"
)

// A sharing says how many keys members share out.
type sharing struct {
	steady  []int // numbers of keys of two members
	buckets int   // of two members, and of the one whose memory is measured
	keys    int   // of the four members of which one crashes, and which a fifth joins
	rollout int   // how many members are replaced
}

// groups measures members that share out keys: what they cost while nothing happens, beside one process that leads as
// many leases and one that renews as many by raw requests; how long the keys of a member that crashed have no owner
// once its Lease has expired; what a new member makes others move and write; how often keys move in a rollout; and what
// a ring needs for each bucket. The members are in one process, each with a connection of its own.
func (b *bench) groups() error {
	idle, err := b.cost(b.idle)
	if err != nil {
		return err
	}
	each, err := b.leasePerKey(b.sharing.steady[0], idle)
	if err != nil {
		return err
	}
	for _, n := range b.sharing.steady {
		if err := b.groupSteady(fmt.Sprintf("%d keys", n), n, keyed(n), idle, each); err != nil {
			return err
		}
	}
	buckets := b.sharing.buckets
	if err := b.groupSteady(fmt.Sprintf("%d buckets", buckets), buckets, ring(buckets), idle, each); err != nil {
		return err
	}
	if err := b.groupMoves(); err != nil {
		return err
	}
	if err := b.groupRollouts(b.sharing.rollout, b.sharing.steady[0]); err != nil {
		return err
	}
	return b.ringWeight()
}

// A cost is what something costs while nothing happens.
type cost struct {
	writes, reads  float64 // requests per second
	client, server float64 // percent of a core: of this process, and of the API server with etcd
}

// cost measures for d, and counts what the meters do.
func (b *bench) cost(d time.Duration, meters ...*meter) (c cost, err error) {
	count := func() (writes, reads int64) {
		for _, m := range meters {
			writes, reads = writes+m.writes.Load(), reads+m.reads.Load()
		}
		return writes, reads
	}
	writes, reads := count()
	cpu, err := ownCPUTime()
	if err != nil {
		return c, err
	}
	began := time.Now()
	if c.server, err = b.serverCPU(d); err != nil {
		return c, err
	}
	seconds := time.Since(began).Seconds()
	used, err := ownCPUTime()
	if err != nil {
		return c, err
	}
	c.client = 100 * (used - cpu).Seconds() / seconds
	writesThen, readsThen := count()
	c.writes, c.reads = float64(writesThen-writes)/seconds, float64(readsThen-reads)/seconds
	return c, nil
}

// A groupMember is one member.
type groupMember struct {
	*meter
	owned  atomic.Int64 // keys that it owns
	begun  atomic.Int64 // how often it began to own one
	stop   context.CancelFunc
	done   chan error
	member string
}

// A part takes part in a group until ctx ends.
type part func(ctx context.Context, m *groupMember, opts []leasehold.Option) error

func keyed(n int) part {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf("tenant-%08d", i)
	}
	return func(ctx context.Context, m *groupMember, opts []leasehold.Option) error {
		return leasehold.Spread(ctx, leasehold.Keys(keys...), func(s leasehold.Session, _ string) error {
			m.owned.Add(1)
			m.begun.Add(1)
			<-s.Done()
			m.owned.Add(-1)
			return nil
		}, opts...)
	}
}

func ring(buckets int) part {
	return func(ctx context.Context, m *groupMember, opts []leasehold.Option) error {
		r, err := leasehold.Join(ctx, buckets, opts...)
		if err != nil {
			return err
		}
		for c := range r.Changes() {
			if c.Gained {
				m.owned.Add(1)
				m.begun.Add(1)
			} else {
				m.owned.Add(-1)
			}
		}
		return r.Wait()
	}
}

func (b *bench) groupMember(group, name string, p part) *groupMember {
	ctx, cancel := context.WithCancel(b.ctx)
	m := &groupMember{meter: newMeter(), stop: cancel, done: make(chan error, 1), member: name}
	opts := []leasehold.Option{
		leasehold.WithRESTConfig(m.attach(b.server.Config())), leasehold.WithNamespace(metav1.NamespaceDefault),
		leasehold.WithLease(group), leasehold.WithIdentity(name), leasehold.WithDuration(b.duration),
		leasehold.WithLogger(slog.New(slog.DiscardHandler)),
	}
	go func() { m.done <- p(ctx, m, opts) }()
	return m
}

// leave ends members, and reports why they ended unless they were told to.
func leave(members ...*groupMember) (err error) {
	for _, m := range members {
		m.stop()
	}
	for _, m := range members {
		if end := <-m.done; !errors.Is(end, context.Canceled) {
			err = errors.Join(err, end)
		}
		m.hangUp()
	}
	return err
}

// awaitShares waits until each of the members owns so many keys, within one.
func (b *bench) awaitShares(keys int, members ...*groupMember) (time.Time, error) {
	least, most := keys/len(members), (keys+len(members)-1)/len(members)
	for end := time.Now().Add(2 * time.Minute); ; {
		shared, total := true, 0
		for _, m := range members {
			n := int(m.owned.Load())
			total += n
			shared = shared && n >= least && n <= most
		}
		now := time.Now()
		if shared && total == keys {
			return now, nil
		}
		if now.After(end) {
			return now, fmt.Errorf("%d keys are not shared out among %d members: %d are owned", keys,
				len(members), total)
		}
		if err := b.sleep(time.Millisecond); err != nil {
			return now, err
		}
	}
}

// groupSteady measures what two members cost while nothing happens, beside what a lease for each key costs.
func (b *bench) groupSteady(what string, keys int, p part, idle, each cost) (err error) {
	b.say("groups: two members with %s", what)
	group := b.lease("group")
	x, y := b.groupMember(group, "x", p), b.groupMember(group, "y", p)
	defer func() { err = errors.Join(err, leave(x, y)) }()
	if _, err := b.awaitShares(keys, x, y); err != nil {
		return err
	}
	if err := b.sleep(b.duration / 2); err != nil {
		return err
	}
	steady, err := b.cost(b.window, x.meter, y.meter)
	if err != nil {
		return err
	}
	writes := steady.writes
	most := 2.4 / (b.duration / 5).Seconds() // 0.8 at the default renew interval of 3 s
	b.report.add(row{What: "group of two, " + what + ": writes/s of both", Leasehold: summarize(writes),
		Goal: "<= " + format(most, ""), Reached: new(writes <= most)}, nil)
	const share = 50
	for _, r := range []struct {
		what      string
		cpu, each float64
	}{
		{"CPU of both", steady.client - idle.client, each.client},
		{"server CPU above idle", steady.server - idle.server, each.server},
	} {
		b.report.add(row{What: "group of two, " + what + ": " + r.what, Unit: "%", Leasehold: summarize(r.cpu),
			Goal: fmt.Sprintf("<= 1/%d of a lease per key", share), Reached: new(r.cpu <= r.each/share)}, nil)
	}
	if steady.reads > 0 {
		b.report.note("group of two, %s: %s reads per second", what, digits(steady.reads))
	}
	return nil
}

// leasePerKey measures what one process costs that leads a lease for each key, beside one that renews as many by raw
// requests.
func (b *bench) leasePerKey(keys int, idle cost) (c cost, err error) {
	client, server, err := b.rawCPU(crowd{count: keys, duration: b.duration})
	if err != nil {
		return c, err
	}
	b.say("groups: a lease for each of %d keys", keys)
	m := newMeter()
	cfg := m.attach(b.server.Config())
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	var loops sync.WaitGroup
	defer m.hangUp()
	defer loops.Wait()
	defer cancel()
	var led atomic.Int64
	prefix := b.lease("each")
	for i := range keys {
		loops.Go(func() {
			for s := range leasehold.Sessions(ctx, leasehold.WithRESTConfig(cfg),
				leasehold.WithNamespace(metav1.NamespaceDefault), leasehold.WithLease(fmt.Sprint(prefix, "-", i)),
				leasehold.WithDuration(b.duration), leasehold.WithLogger(slog.New(slog.DiscardHandler))) {
				led.Add(1)
				<-s.Done()
			}
		})
	}
	for led.Load() < int64(keys) {
		if err := b.sleep(10 * time.Millisecond); err != nil {
			return c, err
		}
	}
	if err := b.sleep(b.duration / 3); err != nil {
		return c, err
	}
	if c, err = b.cost(b.crowding, m); err != nil {
		return c, err
	}
	c.client, c.server = c.client-idle.client, c.server-idle.server
	what := fmt.Sprintf("no group, but a lease for each of %d keys: ", keys)
	b.report.add(row{What: what + "writes/s", Leasehold: summarize(c.writes)}, nil)
	b.report.add(row{What: what + "CPU", Unit: "%", Leasehold: summarize(c.client), Floor: summarize(client)}, nil)
	b.report.add(row{What: what + "server CPU above idle", Unit: "%", Leasehold: summarize(c.server),
		Floor: summarize(server - idle.server)}, nil)
	return c, nil
}

// groupMoves measures a crash of one of four members, and a fifth that joins four.
func (b *bench) groupMoves() (err error) {
	keys := b.sharing.keys
	b.say("groups: a crash of one of four members with %d keys", keys)
	group, p := b.lease("group"), keyed(keys)
	handovers, err := b.rawHandovers()
	if err != nil {
		return err
	}
	var members []*groupMember
	for _, name := range []string{"a", "b", "c", "d"} {
		members = append(members, b.groupMember(group, name, p))
	}
	defer func() { err = errors.Join(err, leave(members...)) }()
	if _, err := b.awaitShares(keys, members...); err != nil {
		return err
	}
	if err := b.sleep(b.duration / 2); err != nil {
		return err
	}
	log, err := b.logWrites(group)
	if err != nil {
		return err
	}
	defer log.stop()

	dead := members[0]
	dead.die()
	dead.stop()
	members = members[1:]
	all, err := b.awaitShares(keys, members...)
	if err != nil {
		return err
	}
	expiry := log.lastRenewal("a").Add(b.duration)
	took := all.Sub(expiry).Seconds()
	b.report.add(
		row{What: fmt.Sprintf("group of four with %d keys, one crashes: until all are owned, past expiry", keys),
			Unit: "s", Leasehold: summarize(took), Floor: summarize(handovers...), Goal: "<= 10 x floor",
			Reached: new(took <= 10*summarize(handovers...).P50)}, nil)
	writes := float64(log.tables() + log.freed())
	b.report.add(row{What: "group of four: writes of the table and to fence", Leasehold: summarize(writes),
		Goal: "2 a dead member", Reached: new(writes <= 2)}, nil)
	log.stop()
	<-dead.done // dead members end by themselves

	members = append(members, b.groupMember(group, "e", p))
	if _, err := b.awaitShares(keys, members...); err != nil {
		return err
	}
	if err := b.sleep(b.duration / 2); err != nil {
		return err
	}
	b.say("groups: a fifth member joins")
	if log, err = b.logWrites(group); err != nil {
		return err
	}
	defer log.stop()
	var others, sent int64
	for _, m := range members {
		others, sent = others-m.begun.Load(), sent-m.writes.Load()
	}
	fifth := b.groupMember(group, "f", p)
	members = append(members, fifth)
	began := time.Now()
	if all, err = b.awaitShares(keys, members...); err != nil {
		return err
	}
	for _, m := range members {
		sent += m.writes.Load()
		if m != fifth {
			others += m.begun.Load()
		}
	}
	moves := float64(fifth.begun.Load() + others)
	b.report.add(row{What: fmt.Sprintf("group of four with %d keys, a fifth joins: moves", keys),
		Leasehold: summarize(moves),
		Goal:      fmt.Sprint(keys / 5), Reached: new(int(moves) == keys/5)}, nil)
	b.report.add(row{What: "group of five: writes of all, renewals included", Leasehold: summarize(float64(sent)),
		Goal:    "<= 20",
		Reached: new(sent <= 20)}, nil)
	b.report.add(row{What: "group of five: writes of the table", Leasehold: summarize(float64(log.tables()))}, nil)
	b.report.add(row{What: "group of five: until each owns its share", Unit: "s",
		Leasehold: summarize(all.Sub(began).Seconds())}, nil)
	return nil
}

// rawHandovers measures what the requests of a handover alone take, as handover does.
func (b *bench) rawHandovers() (took []float64, err error) {
	floor, err := b.newRaw(b.lease("floor"))
	if err != nil {
		return nil, err
	}
	defer floor.close()
	for range b.handovers {
		d, err := floor.handover()
		if err != nil {
			return nil, err
		}
		took = append(took, d.Seconds())
	}
	return took, nil
}

// A writeLog is what a watch brings of the Leases of a group.
type writeLog struct {
	group string
	meter *meter
	watch watch.Interface
	done  chan struct{}

	mu      sync.Mutex // protects following
	table   int
	fences  int
	renewed map[string]time.Time // by holder
}

func (b *bench) logWrites(group string) (*writeLog, error) {
	l := &writeLog{group: group, meter: newMeter(), done: make(chan struct{}), renewed: map[string]time.Time{}}
	client, err := coordinationv1client.NewForConfig(l.meter.attach(b.server.Config()))
	if err != nil {
		return nil, err
	}
	leases := client.Leases(metav1.NamespaceDefault)
	selector := "leasehold-go.github.io/group=" + group
	list, err := leases.List(b.ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, err
	}
	for i := range list.Items {
		l.note(&list.Items[i])
	}
	l.watch, err = leases.Watch(b.ctx,
		metav1.ListOptions{LabelSelector: selector, ResourceVersion: list.ResourceVersion})
	if err != nil {
		return nil, err
	}
	go func() {
		defer close(l.done)
		for event := range l.watch.ResultChan() {
			lease, ok := event.Object.(*coordinationv1.Lease)
			if !ok || event.Type == watch.Deleted {
				continue
			}
			l.mu.Lock()
			switch {
			case lease.Name == l.group:
				l.table++
			case lease.Spec.HolderIdentity == nil:
				l.fences++
			}
			l.mu.Unlock()
			l.note(lease)
		}
	}()
	return l, nil
}

func (l *writeLog) note(lease *coordinationv1.Lease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := lease.Spec; s.HolderIdentity != nil && s.RenewTime != nil {
		l.renewed[*s.HolderIdentity] = s.RenewTime.Time
	}
}

func (l *writeLog) tables() int { l.mu.Lock(); defer l.mu.Unlock(); return l.table }
func (l *writeLog) freed() int  { l.mu.Lock(); defer l.mu.Unlock(); return l.fences }

func (l *writeLog) lastRenewal(holder string) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.renewed[holder]
}

func (l *writeLog) stop() {
	l.watch.Stop()
	<-l.done
	l.meter.hangUp()
}

// ringWeight measures what a ring needs for each bucket that it owns.
func (b *bench) ringWeight() error {
	b.say("groups: a ring with %d buckets", b.sharing.buckets)
	weigh := func() (bytes uint64, goroutines int) {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse, runtime.NumGoroutine()
	}
	bytes, goroutines := weigh()
	m := b.groupMember(b.lease("group"), "x", ring(b.sharing.buckets))
	if _, err := b.awaitShares(b.sharing.buckets, m); err != nil {
		return errors.Join(err, leave(m))
	}
	if err := b.sleep(b.duration / 3); err != nil {
		return errors.Join(err, leave(m))
	}
	heavier, more := weigh()
	n := float64(b.sharing.buckets)
	each := (float64(heavier) - float64(bytes)) / n
	b.report.add(row{What: fmt.Sprintf("group of one, %d buckets: memory each", b.sharing.buckets), Unit: "B",
		Leasehold: summarize(each), Goal: "<= 1 kB", Reached: new(each <= 1000)}, nil)
	b.report.add(row{What: "group of one: goroutines in all", Leasehold: summarize(float64(more - goroutines))}, nil)
	return leave(m)
}
