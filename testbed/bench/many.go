package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	applycoordinationv1 "k8s.io/client-go/applyconfigurations/coordination/v1"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
)

// A crowd is many leases, which one process leads while another stands by.
type crowd struct {
	count    int
	duration time.Duration
	moves    int  // of all from one process to the other
	busy     bool // measure it on a busy machine too
	raw      bool // measure raw renewals of as many Leases too
}

// parseCrowd reads a crowd as -crowd has it, for example 100000,10m.
func parseCrowd(s string) (c crowd, err error) {
	count, duration, found := strings.Cut(s, ",")
	if c.count, err = strconv.Atoi(count); err == nil && found {
		c.duration, err = time.ParseDuration(duration)
	}
	if err != nil || !found || c.count < 1 || c.duration < time.Second {
		return c, fmt.Errorf("-crowd %q: want the number of leases and their duration, for example 100000,10m", s)
	}
	c.moves = 1
	return c, nil
}

// A crowdReport is what is said of a crowd that is led. The numbers are those of the leading process, unless they say
// otherwise.
type crowdReport struct {
	Leases     int     `json:"leases"`
	Duration   string  `json:"duration"`
	Acquire    float64 `json:"acquire"`    // seconds until all were led, from when the process was started
	Goroutines float64 `json:"goroutines"` // for each lease, the loop's own included
	Memory     float64 `json:"memory"`     // bytes of heap and stacks for each
	Resident   float64 `json:"resident"`   // bytes for each, as the system counts them
	Sockets    int     `json:"sockets"`
	Watches    float64 `json:"watches"`          // of both processes, as the API server counts them
	Requests   float64 `json:"requests"`         // per second, of both processes, as the API server counts them
	Oldest     float64 `json:"oldest"`           // seconds: the greatest age of any lease's last renewal
	Deadline   float64 `json:"deadline"`         // seconds: at what age a lease is lost
	CPU        float64 `json:"cpu"`              // percent of a core
	RawCPU     float64 `json:"rawCPU,omitempty"` // the same for raw renewals alone
	Server     float64 `json:"server"`           // percent of a core, of the API server and etcd
	Lost       int     `json:"lost"`             // sessions, the busy time included
	BusyOldest float64 `json:"busyOldest,omitempty"`
}

// many measures one process that leads many leases beside another that stands by for all of them: what they need, how
// late renewals are, and how long the leases take from the one to the other when it stops. What a move's raw writes
// take is measured before each move, of the first mostRaw of them.
func (b *bench) many() error {
	for _, c := range b.crowds {
		err := b.crowd(c)
		if errors.Is(err, errLate) {
			b.crowdRow(c, row{What: err.Error(), Goal: "in time"}, func(row) bool { return false })
			continue
		}
		if err != nil {
			return fmt.Errorf("%d leases: %w", c.count, err)
		}
	}
	return nil
}

// mostRaw bounds how many leases are moved by raw writes, which take as long for each however many there are.
const mostRaw = 10000

func (b *bench) crowd(c crowd) (err error) {
	b.say("many: %d leases of %v", c.count, c.duration)
	t := task{Work: workCrowd, Kubeconfig: b.server.Kubeconfig(), Leases: b.lease("many"), Count: c.count,
		Duration: c.duration}
	rawCPU := 0.0
	if c.raw {
		if rawCPU, _, err = b.rawCPU(c); err != nil {
			return err
		}
	}
	idle, err := b.counters()
	if err != nil {
		return err
	}
	begun := time.Now()
	var leader, standby *process
	defer func() { err = errors.Join(err, leader.end(), standby.end()) }()
	if leader, err = b.newProcess(t); err != nil {
		return err
	}
	led, err := leader.await("led", func(s census) bool { return s.Leading == c.count })
	if err != nil {
		return err
	}
	report := crowdReport{
		Leases: c.count, Duration: c.duration.String(), Acquire: led.LastBegun.Sub(begun).Seconds(),
		Deadline: (c.duration * 4 / 5).Seconds(), RawCPU: rawCPU,
	}
	if standby, err = b.newProcess(t); err != nil {
		return err
	}
	following := func(s census) bool { return s.Following == c.count }
	if _, err := standby.await("followed", following); err != nil {
		return err
	}
	if err := b.weigh(c, leader, idle, &report); err != nil {
		return err
	}
	if c.busy {
		if err := b.burden(leader, &report); err != nil {
			return err
		}
	}
	b.report.Crowds = append(b.report.Crowds, report)
	if c.moves == 0 {
		return nil
	}

	raw, err := b.newRawCrowd(min(c.count, mostRaw))
	if err != nil {
		return err
	}
	defer raw.close()
	var floors, moves []float64
	for range c.moves {
		if standby == nil {
			if standby, err = b.newProcess(t); err != nil {
				return err
			}
			if _, err := standby.await("followed", following); err != nil {
				return err
			}
		}
		floor, err := raw.move()
		if err != nil {
			return err
		}
		begun := time.Now()
		if err := leader.tell("stop"); err != nil {
			return err
		}
		s, err := standby.await("moved", func(s census) bool { return s.Leading == c.count })
		if err != nil {
			return err
		}
		floors = append(floors, floor.Seconds()*float64(c.count)/float64(len(raw.names)))
		moves = append(moves, s.LastBegun.Sub(begun).Seconds())
		if err := leader.end(); err != nil {
			return err
		}
		leader, standby = standby, nil
	}
	b.crowdRow(c, row{What: "moved to its standby", Unit: "s", Leasehold: summarize(moves...),
		Floor: summarize(floors...), Goal: "p50 <= 1.5 x floor"},
		func(r row) bool { return r.Leasehold.P50 <= 1.5*r.Floor.P50 })
	b.crowdRow(c, row{What: "goroutines each", Leasehold: summarize(report.Goroutines), Goal: "<= 1"},
		func(r row) bool { return r.Leasehold.P50 <= 1 })
	b.crowdRow(c, row{What: "resident memory each", Unit: "B", Leasehold: summarize(report.Resident), Goal: "<= 12 kB"},
		func(r row) bool { return r.Leasehold.P50 <= 12e3 })
	if c.raw {
		b.crowdRow(c, row{What: "leader's CPU", Unit: "%", Leasehold: summarize(report.CPU),
			Floor: summarize(report.RawCPU), Goal: "<= 1.2 x floor"},
			func(r row) bool { return r.Leasehold.P50 <= 1.2*r.Floor.P50 })
	}
	b.crowdRow(c, row{What: "sessions lost, a busy time included", Leasehold: summarize(float64(report.Lost)),
		Goal: "0"},
		func(r row) bool { return r.Leasehold.P50 == 0 })
	return nil
}

func (b *bench) crowdRow(c crowd, r row, reached func(row) bool) {
	r.What = fmt.Sprintf("%d leases of one process: %s", c.count, r.What)
	r.Reached = new(reached(r))
	b.report.add(r, nil)
}

// weigh measures the leader, and both processes' requests, while nothing happens.
func (b *bench) weigh(c crowd, leader *process, idle counters, report *crowdReport) error {
	if err := b.sleep(c.duration / 5); err != nil { // a renewal of each
		return err
	}
	weight, err := leader.ask("weigh")
	if err != nil {
		return err
	}
	before, err := b.counters()
	if err != nil {
		return err
	}
	window := max(b.crowding, c.duration/5)
	if report.Server, err = b.serverCPU(window); err != nil {
		return err
	}
	after, err := b.counters()
	if err != nil {
		return err
	}
	s, err := leader.ask("census")
	if err != nil {
		return err
	}
	n, took := float64(c.count), after.at.Sub(before.at).Seconds()
	report.Goroutines, report.Memory, report.Sockets = float64(weight.Goroutines)/n,
		float64(weight.Heap+weight.Stacks)/n, weight.Sockets
	report.Resident = float64(weight.Resident) / n
	report.Watches = after.watches - idle.watches
	report.Requests = (after.requests - before.requests) / took
	report.Oldest, report.Lost = s.Oldest.Seconds(), s.Lost
	report.CPU = 100 * (s.CPU - weight.CPU).Seconds() / took
	return nil
}

// rawCPU returns how much of a core a process uses that renews as many Leases by raw requests, in percent, and how much
// the API server does.
func (b *bench) rawCPU(c crowd) (cpu, server float64, err error) {
	raw, err := b.newRawCrowd(c.count)
	if err != nil {
		return 0, 0, err
	}
	defer raw.close()
	if err := raw.acquire(); err != nil {
		return 0, 0, err
	}
	p, err := b.newProcess(task{Work: workRawWrite, Kubeconfig: b.server.Kubeconfig(), Leases: raw.prefix,
		Count: c.count, Duration: c.duration})
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, p.end()) }()
	if _, err := p.await("renewed", func(s census) bool { return s.Leading == c.count }); err != nil {
		return 0, 0, err
	}
	if err := b.sleep(c.duration / 5); err != nil {
		return 0, 0, err
	}
	before, err := p.ask("census")
	if err != nil {
		return 0, 0, err
	}
	begun := time.Now()
	if server, err = b.serverCPU(max(b.crowding, c.duration/5)); err != nil {
		return 0, 0, err
	}
	after, err := p.ask("census")
	return 100 * (after.CPU - before.CPU).Seconds() / time.Since(begun).Seconds(), server, err
}

// burden measures the leader while another process uses up a core.
func (b *bench) burden(leader *process, report *crowdReport) error {
	burner, err := b.newProcess(task{Work: workBusy})
	if err != nil {
		return err
	}
	if err := b.sleep(2 * b.crowding); err != nil {
		return errors.Join(err, burner.end())
	}
	s, err := leader.ask("census")
	report.BusyOldest, report.Lost = s.Oldest.Seconds(), s.Lost
	return errors.Join(err, burner.end())
}

// counters are what the API server has counted about Leases.
type counters struct {
	at       time.Time
	watches  float64 // open now
	requests float64 // ended since its start; those of the server itself included
	events   float64 // sent to watches since its start
}

func (b *bench) counters() (c counters, err error) {
	client, err := rest.HTTPClientFor(b.server.Config())
	if err != nil {
		return c, err
	}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(b.ctx, http.MethodGet, b.server.Config().Host+"/metrics", nil)
	if err != nil {
		return c, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return c, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return c, errors.Join(err, fmt.Errorf("metrics: %s", resp.Status))
	}
	c.at = time.Now()
	for line := range strings.Lines(string(text)) {
		series, number, _ := strings.Cut(strings.TrimSpace(line), "} ")
		name, labels, _ := strings.Cut(series, "{")
		if !strings.Contains(labels, `resource="leases"`) {
			continue
		}
		value, err := strconv.ParseFloat(number, 64)
		if err != nil {
			return c, fmt.Errorf("metrics: %w", err)
		}
		switch {
		case name == "apiserver_longrunning_requests" && strings.Contains(labels, `verb="WATCH"`):
			c.watches += value
		case name == "apiserver_request_total":
			c.requests += value
		case name == "apiserver_watch_events_total":
			c.events += value
		}
	}
	return c, nil
}

// A rawCrowd is as many Leases, moved by the writes alone: a release at one connection, and once it is answered the
// acquisition at another, all Leases at the same time.
type rawCrowd struct {
	*bench
	prefix string // of their names
	names  []string
	leases [2]coordinationv1client.LeaseInterface
	meters [2]*meter
}

func (b *bench) newRawCrowd(count int) (*rawCrowd, error) {
	r := &rawCrowd{bench: b}
	for i := range r.leases {
		var err error
		if r.leases[i], r.meters[i], err = b.rawLeases(); err != nil {
			return nil, err
		}
	}
	r.prefix = b.lease("raw")
	for i := range count {
		r.names = append(r.names, fmt.Sprintf("%s-%d", r.prefix, i))
	}
	return r, r.each(func(name string) error {
		_, err := r.leases[0].Create(b.ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}},
			metav1.CreateOptions{})
		return err
	})
}

// rawLeases returns a client with connections of its own.
func (b *bench) rawLeases() (coordinationv1client.LeaseInterface, *meter, error) {
	m := newMeter()
	cfg := m.attach(b.server.Config())
	cfg.QPS = -1
	client, err := coordinationv1client.NewForConfig(cfg)
	if err != nil {
		return nil, nil, err
	}
	return client.Leases(metav1.NamespaceDefault), m, nil
}

// each calls do for all Leases at once.
func (r *rawCrowd) each(do func(name string) error) error {
	var all sync.WaitGroup
	errs := make([]error, len(r.names))
	for i, name := range r.names {
		all.Go(func() { errs[i] = do(name) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// acquire makes one holder hold all Leases.
func (r *rawCrowd) acquire() error {
	return r.each(func(name string) error {
		_, err := acquireRaw(r.ctx, r.leases[0], name, "holder", "")
		return err
	})
}

func (r *rawCrowd) move() (time.Duration, error) {
	if err := r.acquire(); err != nil {
		return 0, err
	}
	begun := time.Now()
	err := r.each(func(name string) error {
		released, err := r.leases[0].Patch(r.ctx, name, types.MergePatchType, releaseRaw(""),
			metav1.PatchOptions{FieldManager: "bench"})
		if err == nil {
			_, err = acquireRaw(r.ctx, r.leases[1], name, "other", released.ResourceVersion)
		}
		return err
	})
	return time.Since(begun), err
}

func (r *rawCrowd) close() {
	for _, m := range r.meters {
		m.hangUp()
	}
}

// acquireRaw applies what leasehold does.
func acquireRaw(ctx context.Context, leases coordinationv1client.LeaseInterface, name, identity,
	version string) (*coordinationv1.Lease, error) {
	now := metav1.NowMicro()
	lease := applycoordinationv1.Lease(name, metav1.NamespaceDefault).WithSpec(applycoordinationv1.LeaseSpec().
		WithHolderIdentity(identity).WithLeaseDurationSeconds(15).WithAcquireTime(now).
		WithRenewTime(now).WithLeaseTransitions(1))
	if version != "" {
		lease.WithResourceVersion(version)
	}
	return leases.Apply(ctx, lease, metav1.ApplyOptions{FieldManager: "bench", Force: true})
}

// releaseRaw is the merge patch that leasehold releases by.
func releaseRaw(version string) []byte {
	metadata := ""
	if version != "" {
		metadata = fmt.Sprintf(`"metadata":{"resourceVersion":%q},`, version)
	}
	return fmt.Appendf(nil,
		`{%s"spec":{"holderIdentity":null,"leaseDurationSeconds":null,"acquireTime":null,"renewTime":null}}`, metadata)
}
