package leasehold

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// A Monitor shows what campaigns do, to people and to their tools. The zero value is ready; one serves
// any number of campaigns, to which it is given by WithMonitor. Its counts go on over all campaigns for
// a lease. Reading it never keeps a campaign waiting.
type Monitor struct {
	mu      sync.Mutex
	ledgers map[types.NamespacedName]*ledger // protected by mu
}

// A LeaseStatus is the state of one lease in this process. Its JSON is stable.
type LeaseStatus struct {
	Namespace    string `json:"namespace"`
	Name         string `json:"name"`
	Identity     string `json:"identity"`
	FieldManager string `json:"fieldManager"`

	LeaseDurationSeconds float64 `json:"leaseDurationSeconds"`
	RenewDeadlineSeconds float64 `json:"renewDeadlineSeconds"`
	RenewIntervalSeconds float64 `json:"renewIntervalSeconds"`

	// Campaigning tells whether a campaign for the lease is running, since StartTime.
	Campaigning bool      `json:"campaigning"`
	StartTime   time.Time `json:"startTime,omitzero"`
	// Following is how the Lease is followed: by a "watch" of its own, by a "shared watch" of the
	// namespace, or by "poll"; "" while it cannot be, and while there is no campaign.
	Following string `json:"following"`

	// Leading tells whether a session is live. Since is when the lease was last acquired, released or
	// lost by this process; before that, StartTime.
	Leading         bool      `json:"leading"`
	Since           time.Time `json:"since,omitzero"`
	ValidForSeconds float64   `json:"validForSeconds"`        // for how long leadership is certain without another renewal
	FencingToken    uint64    `json:"fencingToken,omitempty"` // of the session that leads
	Overrun         bool      `json:"overrun"`                // work goes on without the lease

	// Holder is who held the lease when it was last seen; nil for nobody.
	Holder          *HolderStatus `json:"holder,omitempty"`
	ResourceVersion string        `json:"resourceVersion,omitempty"`
	Updates         uint64        `json:"updates"`             // how often the Lease was seen to change
	UpdateTime      time.Time     `json:"updateTime,omitzero"` // when it last was

	Sessions uint64            `json:"sessions"`
	Renewals uint64            `json:"renewals"`
	Failures uint64            `json:"failures"` // requests that failed, other than by meeting somebody else's write
	Losses   map[string]uint64 `json:"losses"`   // by reason: expired, slept, taken, deleted, emptied, edited

	LastError     string    `json:"lastError,omitempty"`
	LastErrorTime time.Time `json:"lastErrorTime,omitzero"`

	LastRenewalSeconds float64   `json:"lastRenewalSeconds"` // how long the last renewal that succeeded took
	RenewalLatency     Histogram `json:"renewalLatency"`
}

// A HolderStatus is who holds a lease.
type HolderStatus struct {
	Identity    string    `json:"identity"`
	AcquireTime time.Time `json:"acquireTime,omitzero"` // by the holder's clock
	RenewTime   time.Time `json:"renewTime,omitzero"`   // by the holder's clock
	Transitions int32     `json:"transitions"`
	ExpiryTime  time.Time `json:"expiryTime,omitzero"` // by ours: when the lease may be taken if the holder is not seen to renew it
}

// A Histogram counts durations by how long they were.
type Histogram struct {
	Count      uint64   `json:"count"`
	SumSeconds float64  `json:"sumSeconds"`
	Buckets    []Bucket `json:"buckets"`
}

// A Bucket counts the durations of at most UpToSeconds, those in smaller buckets included.
type Bucket struct {
	UpToSeconds float64 `json:"upToSeconds"`
	Count       uint64  `json:"count"`
}

// latencyBounds are the upper bounds of the buckets of renewal latencies, in seconds.
var latencyBounds = [...]float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}

// lossReasons are the reasons of losses as they are counted.
var lossReasons = [...]string{expired, slept, taken, deleted, emptied, edited}

// WithMonitor shows the campaign in m.
func WithMonitor(m *Monitor) Option {
	return func(o *options) {
		o.monitor = m
		if m == nil {
			o.fault("WithMonitor: the monitor is nil")
		}
	}
}

// Leases returns the status of all leases that there is or was a campaign for, ordered by namespace and
// name.
func (m *Monitor) Leases() []LeaseStatus {
	statuses := []LeaseStatus{}
	for _, l := range m.all() {
		statuses = append(statuses, l.status())
	}
	slices.SortFunc(statuses, func(a, b LeaseStatus) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return statuses
}

// Check returns an error when something is wrong that only a restart of the process will mend: work
// that goes on without its lease, or a campaign that does not do what it was about to do. A standby is
// healthy, and so is a process that cannot reach the API server. It fits controller-runtime's
// healthz.Checker.
func (m *Monitor) Check(*http.Request) error {
	var wrong []error
	for _, l := range m.all() {
		wrong = append(wrong, l.check())
	}
	return errors.Join(wrong...)
}

// ServeHTTP answers GET with the status of all leases as JSON: {"leases": [LeaseStatus, …]}.
func (m *Monitor) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "want GET or HEAD", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.Encode(map[string]any{"leases": m.Leases()}) // fails only if the client is gone
}

func (m *Monitor) all() []*ledger {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.ledgers))
}

// ledger returns the one for the lease of c, and notes that c is running.
func (m *Monitor) ledger(c *campaign) *ledger {
	l := &ledger{losses: map[string]uint64{}}
	if m == nil {
		return l
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	key := types.NamespacedName{Namespace: c.api.namespace, Name: c.api.name}
	if known := m.ledgers[key]; known != nil {
		l = known
	}
	if m.ledgers == nil {
		m.ledgers = map[types.NamespacedName]*ledger{}
	}
	m.ledgers[key] = l
	l.mu.Lock()
	defer l.mu.Unlock()
	l.campaigns = append(l.campaigns, c)
	l.last = c
	return l
}

// A ledger is what is remembered of one lease, over all campaigns for it.
type ledger struct {
	mu        sync.Mutex // protects following; held only to read or write them
	campaigns []*campaign
	last      *campaign // the newest of them, even if it is over

	since         time.Time // when the lease was last acquired, released or lost
	updates       uint64    // seen by campaigns that are over
	sessions      uint64
	renewals      uint64
	failures      uint64
	losses        map[string]uint64
	lastError     error
	lastErrorTime time.Time
	lastRenewal   time.Duration
	latency       [len(latencyBounds)]uint64 // the last bucket is all that took longer
	slower        uint64
	latencySum    time.Duration
}

func (l *ledger) left(c *campaign) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.campaigns, c); i >= 0 {
		l.campaigns = slices.Delete(l.campaigns, i, i+1)
		l.updates += c.feed.count()
	}
}

func (l *ledger) acquired() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sessions++
	l.since = time.Now()
}

func (l *ledger) released() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.since = time.Now()
}

func (l *ledger) lost(cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.since = time.Now()
	var why *loss
	if errors.As(cause, &why) {
		l.losses[why.reason]++
	}
}

func (l *ledger) renewed(took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.renewals++
	l.lastRenewal = took
	l.latencySum += took
	for i, bound := range latencyBounds {
		if took.Seconds() <= bound {
			l.latency[i]++
			return
		}
	}
	l.slower++
}

func (l *ledger) failed(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures++
	l.lastError, l.lastErrorTime = err, time.Now()
}

// noteError is failed for what is no failure of a request.
func (l *ledger) noteError(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lastError, l.lastErrorTime = err, time.Now()
}

// running returns the campaign to show: one that leads, else the newest.
func (l *ledger) running() (shown *campaign, leads *hold) {
	for _, c := range l.campaigns {
		if h := c.held.Load(); h != nil && h.Err() == nil {
			return c, h
		}
	}
	return l.last, nil
}

func (l *ledger) status() LeaseStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, h := l.running()
	s := LeaseStatus{
		Namespace:            c.api.namespace,
		Name:                 c.api.name,
		Identity:             c.api.identity,
		FieldManager:         c.api.fieldManager,
		LeaseDurationSeconds: c.duration.Seconds(),
		RenewDeadlineSeconds: c.renewDeadline.Seconds(),
		RenewIntervalSeconds: c.renewInterval.Seconds(),
		Campaigning:          slices.Contains(l.campaigns, c),
		StartTime:            c.started,
		Since:                l.since,
		Updates:              l.updates,
		Sessions:             l.sessions,
		Renewals:             l.renewals,
		Failures:             l.failures,
		Losses:               map[string]uint64{},
		LastErrorTime:        l.lastErrorTime,
		LastRenewalSeconds:   l.lastRenewal.Seconds(),
		RenewalLatency:       l.histogram(),
	}
	for _, c := range l.campaigns {
		s.Updates += c.feed.count()
	}
	for _, reason := range lossReasons {
		s.Losses[reason] = l.losses[reason]
	}
	if l.lastError != nil {
		s.LastError = l.lastError.Error()
	}
	if s.Since.IsZero() {
		s.Since = c.started
	}
	if h != nil {
		session := Session{h}
		s.FencingToken = session.FencingToken()
		s.ValidForSeconds = session.ValidFor().Seconds()
		s.Leading = s.ValidForSeconds > 0
	}
	if h := c.held.Load(); h != nil {
		s.Overrun = h.overran.Load()
	}
	c.feed.show(&s)
	return s
}

func (l *ledger) histogram() Histogram {
	h := Histogram{SumSeconds: l.latencySum.Seconds()}
	for i, bound := range latencyBounds {
		h.Count += l.latency[i]
		h.Buckets = append(h.Buckets, Bucket{bound, h.Count})
	}
	h.Count += l.slower
	return h
}

func (l *ledger) check() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var wrong []error
	for _, c := range l.campaigns {
		name := c.api.namespace + "/" + c.api.name
		if h := c.held.Load(); h != nil && h.overran.Load() {
			wrong = append(wrong, fmt.Errorf("lease %s: work goes on without it: %w", name, h.Err()))
		}
		if late := max(c.due.late(c.clock), c.feed.late()); late > c.duration && !c.lane.crowded(c.duration) {
			wrong = append(wrong, fmt.Errorf("lease %s: its campaign is stuck: it was to go on %v ago", name, late.Round(time.Millisecond)))
		}
	}
	return errors.Join(wrong...)
}

// A promise is when somebody at work means to go on, by the clock of timers: while the machine sleeps,
// nobody is late.
type promise struct{ due atomic.Pointer[time.Time] }

func (p *promise) in(c clock, d time.Duration) {
	due := c.now().mono.Add(d)
	p.due.Store(&due)
}

// late returns for how long the promise has been broken; it is negative as long as it is not.
func (p *promise) late(c clock) time.Duration { return c.now().mono.Sub(*p.due.Load()) }
