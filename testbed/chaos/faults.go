package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/leasehold-go/leasehold/testbed/internal/boottime"
	"github.com/leasehold-go/leasehold/testbed/internal/proxy"
)

// A randomFault is a fault with its random parameters. Its target depends on the leader at the time.
type randomFault struct {
	kind    string
	inject  func(*harness, context.Context, randomFault) error
	lease   int     // index of the lease whose candidates it can hit
	leader  bool    // hit the leader if there is one
	pick    int     // else the candidate with this number
	x, y, z float64 // in [0, 1): parameters of the kind
	pause   time.Duration
}

// kinds are all faults. inject returns once the fault is undone; an error is a fault of the harness.
var kinds = []struct {
	name   string
	weight int
	inject func(*harness, context.Context, randomFault) error
}{
	{"reset", 3, (*harness).resetConnections},
	{"refuse", 4, (*harness).refuse},
	{"delay", 5, (*harness).delay},
	{"swallow", 4, (*harness).swallow},
	{"cut", 16, (*harness).cut},
	{"not found", 4, (*harness).notFound},
	{"partition", 3, (*harness).partition},
	{"stop", 10, (*harness).stop},
	{"freeze", 14, (*harness).freezeWriter},
	{"kill", 5, (*harness).kill},
	{"terminate", 3, (*harness).terminate},
	{"starve", 4, (*harness).starve},
	{"burn", 1, (*harness).burn},
	{"server killed", 1, (*harness).killServer},
	{"server paused", 2, (*harness).pauseServer},
	{"server slow", 2, (*harness).slowServer},
	{"label", 3, (*harness).label},
	{"lengthen", 2, (*harness).lengthen},
	{"touch", 2, (*harness).touch},
	{"shorten", 1, (*harness).shorten},
	{"empty", 1, (*harness).empty},
	{"steal", 2, (*harness).steal},
	{"delete", 2, (*harness).delete},
	{"unlabel", 1, (*harness).unlabel},
	{"garble", 1, (*harness).garble},
	{"restore", 2, (*harness).restore},
}

// draw chooses the next fault. Each call takes as many numbers from the generator.
func draw(chance *rand.Rand, leases int) randomFault {
	all := 0
	for _, k := range kinds {
		all += k.weight
	}
	var d randomFault
	n := chance.IntN(all)
	for _, k := range kinds {
		if n -= k.weight; n < 0 {
			d.kind, d.inject = k.name, k.inject
			break
		}
	}
	d.lease, d.leader, d.pick = chance.IntN(leases), chance.IntN(3) > 0, chance.IntN(1000)
	d.x, d.y, d.z = chance.Float64(), chance.Float64(), chance.Float64()
	d.pause = 100*time.Millisecond + time.Duration(chance.ExpFloat64()*float64(700*time.Millisecond))
	d.pause = min(d.pause, 5*time.Second)
	return d
}

// links are the delays of all candidates' networks during a storm.
type links struct {
	kind   string    // "" without delays
	share  []float64 // by candidate: the longest round trip as a share of its renew deadline
	oneWay []int     // by candidate: the direction that is slow when only one is
}

// Kinds of links.
const (
	slow       = "slow"
	jittery    = "jittery"
	asymmetric = "slow in one direction"
)

// drawLinks chooses the links of n candidates for a storm. Each call takes as many numbers from the generator.
func drawLinks(chance *rand.Rand, n int) links {
	l := links{kind: []string{slow, jittery, asymmetric, "", "", ""}[chance.IntN(6)]}
	for range n {
		l.share, l.oneWay = append(l.share, chance.Float64()/5), append(l.oneWay, chance.IntN(2))
	}
	return l
}

// rules returns the rules of both directions for the i-th candidate, which has that renew deadline.
func (l links) rules(i int, deadline time.Duration) (rules [2]proxy.Rule) {
	roundTrip := time.Duration(l.share[i] * float64(deadline))
	switch l.kind {
	case slow:
		rules[0].Delay, rules[1].Delay = roundTrip/2, roundTrip/2
	case jittery:
		rules[0].Jitter, rules[1].Jitter = roundTrip/2, roundTrip/2
	case asymmetric:
		rules[l.oneWay[i]].Delay = roundTrip
	}
	return rules
}

// slowLinks delays the links of all candidates; the returned function removes the delays.
func (h *harness) slowLinks(l links) (over func()) {
	if l.kind == "" {
		return func() {}
	}
	noted := h.begin(randomFault{kind: "links " + l.kind}, "", "", "all links %s", l.kind)
	for i, m := range h.members {
		m.link = l.rules(i, m.Deadline)
		m.restoreLink()
	}
	return func() {
		for _, m := range h.members {
			m.link = [2]proxy.Rule{}
			m.restoreLink()
		}
		noted()
	}
}

// length returns how long a fault lasts: much shorter than a lease's duration, slightly shorter, about equal, or
// longer.
func (d randomFault) length(duration time.Duration) time.Duration {
	share := 0.0
	switch {
	case d.x < 0.3:
		share = 0.6 * d.y
	case d.x < 0.5:
		share = 0.75 + 0.2*d.y
	case d.x < 0.75:
		share = 0.95 + 0.15*d.y
	default:
		share = 1.1 + 0.6*d.y
	}
	return max(time.Duration(share*float64(duration)), 50*time.Millisecond)
}

// maxFaults is the greatest number of faults at a time.
const maxFaults = 6

// disturb injects faults until ctx ends and returns once all are undone. In half of the storms all links are slow as
// well.
func (h *harness) disturb(ctx context.Context) {
	defer h.slowLinks(drawLinks(h.chance, len(h.members)))()
	var group sync.WaitGroup
	defer group.Wait()
	places := make(chan struct{}, maxFaults)
	for ctx.Err() == nil {
		d := draw(h.chance, len(h.leases))
		select {
		case places <- struct{}{}:
			group.Go(func() {
				defer func() { <-places }()
				if err := d.inject(h, ctx, d); err != nil {
					h.fail(h.leases[d.lease], boottime.Now(), fmt.Errorf("fault %q: %w", d.kind, err))
				}
			})
		default: // maxFaults are active
		}
		sleep(ctx, d.pause)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// target returns the candidate that a fault hits.
func (h *harness) target(d randomFault) *member {
	lease := h.leases[d.lease]
	var all []*member
	leader := h.leader(lease)
	for _, m := range h.members {
		if m.Lease != lease {
			continue
		}
		if d.leader && m.Name == leader {
			return m
		}
		all = append(all, m)
	}
	return all[d.pick%len(all)]
}

// begin records and logs a fault; the returned function records its end.
func (h *harness) begin(d randomFault, candidate, lease, format string, args ...any) (over func()) {
	f := fault{
		From: boottime.Now(), To: 1<<63 - 1, Kind: d.kind, Candidate: candidate, Lease: lease,
		Text: fmt.Sprintf(format, args...),
	}
	h.mu.Lock()
	i := len(h.faults)
	h.faults = append(h.faults, f)
	h.mu.Unlock()
	h.say("%s", f.Text)
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.faults[i].To = boottime.Now()
	}
}

func short(d time.Duration) time.Duration { return d.Round(10 * time.Millisecond) }

// Faults of a candidate's network.

// onNetwork calls f unless the target's network has a fault already.
func (h *harness) onNetwork(d randomFault, f func(m *member) error) error {
	m := h.target(d)
	return h.on(d, m, &m.onNetwork, &m.onProcess, f)
}

// on locks one part of the target and calls f, unless the part has a fault already. In three cases of four the other
// part must have none either, because a candidate that is both cut off and frozen leads no longer than one that is
// frozen.
func (h *harness) on(d randomFault, m *member, it, other *sync.Mutex, f func(m *member) error) error {
	if !it.TryLock() {
		return nil
	}
	defer it.Unlock()
	if d.pick%4 > 0 {
		if !other.TryLock() {
			return nil
		}
		defer other.Unlock()
	}
	return f(m)
}

func (h *harness) resetConnections(ctx context.Context, d randomFault) error {
	return h.onNetwork(d, func(m *member) error {
		n := 1 + int(5*d.x)
		defer h.begin(d, m.Name, "", "%s: connections reset, %d times", m.Name, n)()
		for range n {
			m.network.Reset()
			sleep(ctx, time.Duration(d.y*float64(m.Interval)))
		}
		return nil
	})
}

func (h *harness) refuse(ctx context.Context, d randomFault) error {
	return h.onNetwork(d, func(m *member) error {
		length := d.length(m.Duration)
		defer h.begin(d, m.Name, "", "%s: connections reset and refused for %v", m.Name, short(length))()
		if err := m.network.Refuse(true); err != nil {
			return err
		}
		m.network.Reset()
		sleep(ctx, length)
		return m.network.Refuse(false)
	})
}

func (h *harness) delay(ctx context.Context, d randomFault) error {
	return h.onNetwork(d, func(m *member) error {
		length := d.length(2 * m.Duration)
		rule := proxy.Rule{Delay: time.Duration(d.z * d.z * float64(m.Deadline) / 2)}
		rule.Jitter = rule.Delay / 2
		toServer, toClient, what := rule, rule, "both ways"
		if d.pick/4%3 == 1 {
			toServer, what = proxy.Rule{}, "replies"
		} else if d.pick/4%3 == 2 {
			toClient, what = proxy.Rule{}, "requests"
		}
		defer h.begin(d, m.Name, "", "%s: %s delayed by %v and more for %v", m.Name, what, short(rule.Delay),
			short(length))()
		m.network.Set(toServer, toClient)
		sleep(ctx, length)
		m.restoreLink()
		return nil
	})
}

func (h *harness) swallow(ctx context.Context, d randomFault) error {
	return h.onNetwork(d, func(m *member) error {
		defer h.begin(d, m.Name, "", "%s: existing connections black-holed", m.Name)()
		m.network.Swallow()
		return nil
	})
}

func (h *harness) cut(ctx context.Context, d randomFault) error {
	return h.onNetwork(d, func(m *member) error {
		length := d.length(m.Duration)
		rule, what := proxy.Rule{Hold: true}, "held up"
		if d.z < 0.5 {
			rule, what = proxy.Rule{Drop: true}, "lost"
		}
		toServer, toClient, which := rule, rule, "everything"
		switch d.pick / 4 % 4 {
		case 0:
			toServer, which = proxy.Rule{}, "replies"
		case 1:
			toClient, which = proxy.Rule{}, "requests"
		}
		defer h.begin(d, m.Name, "", "%s: %s %s for %v", m.Name, which, what, short(length))()
		m.network.Set(toServer, toClient)
		sleep(ctx, length)
		m.restoreLink()
		return nil
	})
}

// notFound answers all requests of a candidate with 404 for a moment: either with a gateway's own page, or with the
// Status by which the API server reports that the Lease does not exist.
func (h *harness) notFound(ctx context.Context, d randomFault) error {
	return h.onNetwork(d, func(m *member) error {
		length := 200*time.Millisecond + time.Duration(d.y*float64(600*time.Millisecond))
		answer, what := gatewayPage, "with a gateway's page"
		if d.z < 0.5 {
			answer, what = gatewayStatus, "as if the Lease did not exist"
		}
		defer h.begin(d, m.Name, "", "%s: all requests answered with 404 %s for %v", m.Name, what, short(length))()
		if err := m.tell(answer); err != nil {
			return ignoreEnded(err)
		}
		sleep(ctx, length)
		return ignoreEnded(m.tell(gatewayOpen))
	})
}

// partition cuts off several candidates at the same time.
func (h *harness) partition(ctx context.Context, d randomFault) error {
	length := d.length(5 * time.Second)
	rule, what := proxy.Rule{Hold: true}, "held up"
	if d.z < 0.5 {
		rule, what = proxy.Rule{Drop: true}, "lost"
	}
	var group sync.WaitGroup
	for i, m := range h.members {
		if (d.pick>>i)&1 == 0 || !m.onNetwork.TryLock() {
			continue
		}
		group.Go(func() {
			defer m.onNetwork.Unlock()
			defer h.begin(d, m.Name, "", "%s: everything %s for %v, with other candidates", m.Name, what,
				short(length))()
			m.network.Set(rule, rule)
			sleep(ctx, length)
			m.restoreLink()
		})
	}
	group.Wait()
	return nil
}

// Faults of a candidate's process.

// onProcess calls f unless the target's process has a fault already.
func (h *harness) onProcess(d randomFault, f func(m *member) error) error {
	m := h.target(d)
	return h.on(d, m, &m.onProcess, &m.onNetwork, f)
}

// ignoreEnded returns nil for an error that means that the process has ended, and its pipe with it. The supervisor
// reports one that ended by itself.
func ignoreEnded(err error) error {
	if errors.Is(err, os.ErrProcessDone) || errors.Is(err, os.ErrClosed) || errors.Is(err, syscall.EPIPE) {
		return nil
	}
	return err
}

func (h *harness) stop(ctx context.Context, d randomFault) error {
	return h.onProcess(d, func(m *member) error {
		length := d.length(m.Duration)
		defer h.begin(d, m.Name, "", "%s: stopped for %v", m.Name, short(length))()
		if err := m.signal(syscall.SIGSTOP); err != nil {
			return ignoreEnded(err)
		}
		sleep(ctx, length)
		return ignoreEnded(m.signal(syscall.SIGCONT))
	})
}

// freezeWriter stops a leader between its check of the session and its write.
func (h *harness) freezeWriter(ctx context.Context, d randomFault) error {
	d.leader = true
	return h.onProcess(d, func(m *member) error {
		length := time.Duration((1.1 + 0.8*d.y) * float64(m.Duration))
		defer h.begin(d, m.Name, "", "%s: frozen before a write for %v", m.Name, short(length))()
		m.mu.Lock()
		m.stopped = true
		m.mu.Unlock()
		err := m.tell(freeze)
		sleep(ctx, length)
		return ignoreEnded(errors.Join(err, m.tell(thaw), m.signal(syscall.SIGCONT)))
	})
}

func (h *harness) kill(ctx context.Context, d randomFault) error {
	return h.onProcess(d, func(m *member) error {
		length := time.Duration(d.y * d.y * float64(m.Duration))
		defer h.begin(d, m.Name, "", "%s: killed, restarted after %v", m.Name, short(length))()
		if err := m.end(syscall.SIGKILL); err != nil {
			return err
		}
		sleep(ctx, length)
		return m.start()
	})
}

func (h *harness) terminate(ctx context.Context, d randomFault) error {
	return h.onProcess(d, func(m *member) error {
		length := time.Duration(d.y * d.y * float64(m.Duration))
		defer h.begin(d, m.Name, "", "%s: terminated, restarted after %v", m.Name, short(length))()
		if err := m.end(syscall.SIGTERM); err != nil {
			return err
		}
		sleep(ctx, length)
		return m.start()
	})
}

// starve stops a process for most of the time.
func (h *harness) starve(ctx context.Context, d randomFault) error {
	return h.onProcess(d, func(m *member) error {
		length := d.length(m.Duration)
		on, off := 2*time.Millisecond+time.Duration(d.y*float64(10*time.Millisecond)),
			30*time.Millisecond+time.Duration(d.z*float64(200*time.Millisecond))
		defer h.begin(d, m.Name, "", "%s: runs for %v in %v for %v", m.Name, on.Round(time.Millisecond),
			(on + off).Round(time.Millisecond), short(length))()
		for until := boottime.Now() + length; boottime.Now() < until && ctx.Err() == nil; {
			if err := m.signal(syscall.SIGSTOP); err != nil {
				return ignoreEnded(err)
			}
			sleep(ctx, off)
			if err := m.signal(syscall.SIGCONT); err != nil {
				return ignoreEnded(err)
			}
			sleep(ctx, on)
		}
		return nil
	})
}

// burn keeps all CPUs busy.
func (h *harness) burn(ctx context.Context, d randomFault) error {
	length := time.Second + time.Duration(d.y*float64(3*time.Second))
	defer h.begin(d, "", "", "all CPUs busy for %v", short(length))()
	return burn(ctx, length)
}

// Faults of the API server.

func (h *harness) onServer(f func() error) error {
	if !h.serverBusy.TryLock() {
		return nil
	}
	defer h.serverBusy.Unlock()
	return f()
}

func (h *harness) killServer(ctx context.Context, d randomFault) error {
	return h.onServer(func() error {
		length := time.Duration(d.y * d.y * float64(6*time.Second))
		over := h.begin(d, "", "", "API server and etcd killed, restarted on their data after %v", short(length))
		defer over()
		if err := h.server.Kill(); err != nil {
			return err
		}
		sleep(ctx, length)
		return h.server.Restart(context.WithoutCancel(ctx))
	})
}

func (h *harness) pauseServer(ctx context.Context, d randomFault) error {
	return h.onServer(func() error {
		length := d.length(5 * time.Second)
		defer h.begin(d, "", "", "API server and etcd paused for %v", short(length))()
		if err := h.server.Pause(); err != nil {
			return err
		}
		sleep(ctx, length)
		return h.server.Resume()
	})
}

// slowServer stops the API server and its etcd for most of the time. It stands for slow disks too: etcd has no
// setting that slows down its sync, and to a client that waits for a write both look the same.
func (h *harness) slowServer(ctx context.Context, d randomFault) error {
	return h.onServer(func() error {
		length := d.length(5 * time.Second)
		on, off := 5*time.Millisecond+time.Duration(d.y*float64(15*time.Millisecond)),
			10*time.Millisecond+time.Duration(d.z*float64(90*time.Millisecond))
		defer h.begin(d, "", "", "API server and etcd run for %v in %v for %v", on.Round(time.Millisecond),
			(on + off).Round(time.Millisecond), short(length))()
		for until := boottime.Now() + length; boottime.Now() < until && ctx.Err() == nil; {
			if err := h.server.Pause(); err != nil {
				return err
			}
			sleep(ctx, off)
			if err := h.server.Resume(); err != nil {
				return err
			}
			sleep(ctx, on)
		}
		return nil
	})
}

// Edits of an operator. Those that docs/safety.md lists under Limits can make two lead for a moment: check.go excuses
// them.

// patch edits a Lease as kubectl would. It ignores errors, because the API server may be down.
func (h *harness) patch(ctx context.Context, lease, fields string) {
	h.patchAnnotations(ctx, lease, "", fields)
}

// patchAnnotations is patch with annotations, in JSON, that are edited too.
func (h *harness) patchAnnotations(ctx context.Context, lease, annotations, fields string) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	body := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:"%d"%s}%s}`, handAnnotation, h.hands.Add(1), annotations,
		fields)
	_, _ = h.operator.Patch(ctx, lease, types.MergePatchType, body, metav1.PatchOptions{FieldManager: "operator"})
}

func (h *harness) label(ctx context.Context, d randomFault) error {
	lease := h.edited(d, true)
	if lease == "" {
		return nil
	}
	n := 1 + int(8*d.y)
	defer h.begin(d, "", lease, "%s: labels edited, %d times", lease, n)()
	for i := range n {
		h.patch(ctx, lease, fmt.Sprintf(`,"labels":{"edit":"%d"}}`, i))
		sleep(ctx, time.Duration(d.z*float64(300*time.Millisecond)))
	}
	return nil
}

func (h *harness) lengthen(ctx context.Context, d randomFault) error {
	lease := h.edited(d, false)
	if lease == "" {
		return nil
	}
	seconds := int((h.leaseHistory.last(lease).Duration + time.Second).Seconds()) + int(2*d.y)
	seconds = min(seconds, int(longest(fleets["all"]).Seconds())+2)
	defer h.begin(d, "", lease, "%s: duration set to %d s", lease, seconds)()
	h.patch(ctx, lease, fmt.Sprintf(`},"spec":{"leaseDurationSeconds":%d}`, seconds))
	return nil
}

func (h *harness) touch(ctx context.Context, d randomFault) error {
	lease := h.edited(d, false)
	if lease == "" {
		return nil
	}
	defer h.begin(d, "", lease, "%s: renewTime set to now", lease)()
	h.patch(ctx, lease, fmt.Sprintf(`},"spec":{"renewTime":%q}`, now()))
	return nil
}

func (h *harness) shorten(ctx context.Context, d randomFault) error {
	lease := h.leases[d.lease]
	if h.isGroup(lease) {
		return nil // a limit
	}
	defer h.begin(d, "", lease, "%s: duration set to %d s", lease, 1+d.pick%2)()
	h.patch(ctx, lease, fmt.Sprintf(`},"spec":{"leaseDurationSeconds":%d}`, 1+d.pick%2))
	return nil
}

// nobody completes a patch so that it frees the Lease.
const nobody = `},"spec":{"holderIdentity":null,"acquireTime":null,"renewTime":null,"leaseDurationSeconds":null}`

func (h *harness) empty(ctx context.Context, d randomFault) error {
	lease := h.leases[d.lease]
	if h.isGroup(lease) {
		return nil // a limit
	}
	defer h.begin(d, "", lease, "%s: holder removed", lease)()
	h.patch(ctx, lease, nobody)
	return nil
}

func (h *harness) steal(ctx context.Context, d randomFault) error {
	lease := h.leases[d.lease]
	if h.isGroup(lease) {
		return nil // a limit
	}
	seconds, release := 2+int(3*d.y), d.x < 0.5
	length := time.Duration(d.z * float64(seconds) * float64(time.Second))
	what := "left to expire"
	if release {
		what = "freed after " + short(length).String()
	}
	defer h.begin(d, "", lease, "%s: held by an intruder for %d s, %s", lease, seconds, what)()
	h.patch(ctx, lease,
		fmt.Sprintf(`},"spec":{"holderIdentity":"intruder","leaseDurationSeconds":%d,"acquireTime":%q,"renewTime":%q}`,
			seconds, now(), now()))
	if release {
		sleep(ctx, length)
		if h.leaseHistory.last(lease).Holder == "intruder" {
			h.patch(ctx, lease, nobody)
		}
	}
	return nil
}

func (h *harness) delete(ctx context.Context, d randomFault) error {
	lease := h.edited(d, true)
	if lease == "" {
		return nil
	}
	defer h.begin(d, "", lease, "%s: deleted", lease)()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_ = h.operator.Delete(ctx, lease, metav1.DeleteOptions{}) // the API server may be down
	return nil
}

func now() string { return metav1.NowMicro().UTC().Format(metav1.RFC3339Micro) }
