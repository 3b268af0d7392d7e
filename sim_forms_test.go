package leasehold

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v4"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"github.com/leasehold-go/leasehold/leasetest"
)

// A form is by which call a candidate campaigns. All make the same promises.
type form int

const (
	loops form = iota
	acquires
	tries
	does
)

func (f form) String() string { return []string{"Sessions", "Acquire", "TryAcquire", "Do"}[f] }

// setForms decides by which call each candidate campaigns, and with which of the options that change what a
// release or a restart does; and whether somebody watches, and vacates.
func (s *sim) setForms() {
	twins := map[string]int{}
	for _, c := range s.candidates {
		twins[c.identity]++
	}
	deletes := roll(s.seed, 11).happens(0.2)
	for i, c := range s.candidates {
		d := roll(s.seed, 11, uint64(i))
		if i > 0 && d.happens(0.3) { // the first one can always lead in the end
			c.form = form(1 + d.IntN(3))
		}
		c.deletes = deletes && d.happens(0.7)
		c.reclaims = c.identity != "" && twins[c.identity] == 1 && d.happens(0.3)
	}
	d := roll(s.seed, 12)
	if d.happens(0.3) {
		s.observer = &observer{sim: s, link: s.newLink("observer")}
	}
	if d.happens(0.3) {
		l := s.newLink(vacater)
		for range 1 + d.IntN(3) {
			s.deed(d.between(0, s.calm-1), vacater, "begins to vacate what the holder holds", func() { s.vacate(l) })
		}
		slices.SortStableFunc(s.deeds, func(a, b deed) int { return cmp.Compare(a.at, b.at) })
	}
}

// lead campaigns in the candidate's form.
func (k *simCampaign) lead(ctx context.Context, opts []Option) {
	if k.deletes {
		opts = append(opts, WithDeleteOnRelease())
	}
	if k.reclaims {
		opts = append(opts, WithReclaim())
	}
	acquire := Acquire
	switch k.form {
	case loops:
		for session := range Sessions(ctx, opts...) {
			if !k.body(session) {
				return
			}
		}
	case does:
		Do(ctx, func(ctx context.Context) (bool, error) {
			session, ok := FromContext(ctx)
			if !ok {
				k.sim.judge.fault("%s: Do's context has no session", k.label)
			}
			return k.body(session), nil
		}, opts...)
	case tries:
		acquire = TryAcquire
		fallthrough
	case acquires:
		session, err := acquire(ctx, opts...)
		if err != nil {
			return
		}
		defer session.Release()
		k.body(session)
	}
}

// Delete is what WithDeleteOnRelease sends.
func (k *simCampaign) Delete(ctx context.Context, name string, opts metav1.DeleteOptions) error {
	k.sim.judge.requested(ctx, k, "delete")
	k.sim.judge.deletes(k, opts.Preconditions)
	defer k.link.begin()()
	return k.LeaseInterface.Delete(ctx, name, opts)
}

// deletes judges that k sends a deletion: of a Lease that nobody holds, as k itself left it.
func (j *judge) deletes(k *simCampaign, only *metav1.Preconditions) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if only == nil || only.UID == nil || only.ResourceVersion == nil {
		j.blame("%s: deletes the Lease without a precondition", k.label)
		return
	}
	version, _ := strconv.ParseUint(*only.ResourceVersion, 10, 64)
	if i := int(version) - firstVersion; i < 0 || i >= len(j.versions) || j.versions[i] != nil {
		j.blame("%s: deletes version %d of the Lease, which somebody holds", k.label, version)
	}
}

// vacater is the client of those who call Vacate.
const vacater = "vacater"

// vacate calls Vacate for whoever holds the lease when it begins.
func (s *sim) vacate(l *link) {
	identity := s.judge.vacating()
	if identity == "" {
		return
	}
	began := uint64(s.now())
	end := l.begin()
	s.running.Go(func() {
		defer end()
		freed, err := Vacate(s.ctx, WithLease(name), WithNamespace(ns), WithClient(l.client), WithIdentity(identity), unlogged,
			withClock(rateClock{s.start, 1}), seeded(s.seed, 13, began))
		s.judge.note(vacater, "has vacated the lease of %s: %v, %v", identity, freed, err)
	})
}

// seeded has a candidate draw its chance from parts.
func seeded(parts ...uint64) Option {
	return func(o *options) {
		luck, policies := roll(parts...), uint64(0)
		o.chance = func(n time.Duration) time.Duration { return time.Duration(luck.Int64N(int64(n))) }
		o.newBackOff = func() backoff.BackOff {
			policies++
			return &simBackOff{dice: roll(append(slices.Clone(parts), policies)...)}
		}
	}
}

// vacating returns the identity that holds the lease, which is going to be vacated, "" for nobody of ours.
func (j *judge) vacating() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	t := j.latest()
	if t == nil || t.campaign == nil {
		return ""
	}
	j.vacated[t.identity] = true
	return t.identity
}

// An observer watches by Holders, through its own link.
type observer struct {
	coordinationv1client.LeaseInterface
	sim  *sim
	link *link

	// What follows is protected by the judge's mu.
	last             tenureKey
	seen             int
	second, requests int
}

// live watches until the world ends.
func (o *observer) live() {
	s := o.sim
	o.LeaseInterface = o.link.leases
	var err error
	for h := range Holders(s.ctx, WithLease(name), WithNamespace(ns), WithClient(o), WithError(&err), unlogged,
		withClock(rateClock{s.start, 1}), seeded(s.seed, 14)) {
		s.judge.observed(o, h)
	}
	if err != context.Canceled {
		s.judge.fault("Holders ended with %v", err)
	}
}

// observed judges that Holders yields h: somebody who did hold the lease, and a change.
func (j *judge) observed(o *observer, h Holder) {
	j.mu.Lock()
	defer j.mu.Unlock()
	var now tenureKey
	if h != (Holder{}) {
		now = tenureKey{"", h.Identity, h.AcquireTime.UnixMicro()}
		known := false
		for key := range j.terms {
			known = known || key.identity == now.identity && key.acquired == now.acquired
		}
		if !known {
			j.blame("Holders yields %v, who never held the lease", h)
		}
	} else if o.seen > 0 && o.last == now {
		j.blame("Holders yields nobody twice")
	}
	o.last = now
	o.seen++
}

// observedAll judges that the observer knows the holder, who has been the same for a while.
func (j *judge) observedAll(o *observer) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if o == nil || time.Since(j.turned) < 2*time.Second {
		return
	}
	var want tenureKey
	if t := j.latest(); t != nil {
		want = tenureKey{"", t.identity, t.acquired}
	}
	if o.last != want || o.seen == 0 {
		j.blame("Holders yielded %v last, want %v", o.last, want)
	}
}

// asks judges how many requests the observer sends.
func (o *observer) asks() (end func()) {
	j := o.sim.judge
	j.mu.Lock()
	if second := int(o.sim.now() / time.Second); second != o.second {
		o.second, o.requests = second, 0
	}
	o.requests++
	if o.requests == 25 {
		j.blame("the observer sends %d requests within a second", o.requests)
	}
	storm := o.requests >= 25
	j.mu.Unlock()
	if storm {
		time.Sleep(time.Second) // so that the world goes on to its end
	}
	return o.link.begin()
}

func (o *observer) Leases(string) coordinationv1client.LeaseInterface { return o }

func (o *observer) Get(ctx context.Context, name string, opts metav1.GetOptions) (*coordinationv1.Lease, error) {
	defer o.asks()()
	return o.LeaseInterface.Get(ctx, name, opts)
}

func (o *observer) Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	defer o.asks()()
	return o.LeaseInterface.Watch(ctx, opts)
}

// byOthers judges a change by a client that is no candidate, and tells whether it was one of those here.
func (j *judge) byOthers(c leasetest.Change, before tenureKey, held bool) bool {
	switch c.Client {
	case "observer":
		j.blame("the observer writes: %v", c.Type)
	case vacater:
		if held || !j.vacated[before.identity] {
			j.blame("Vacate wrote over the lease of %q", before.identity)
		}
		j.seize("emptied")
	default:
		return false
	}
	return true
}
