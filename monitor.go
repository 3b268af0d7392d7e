package leasehold

import (
	"cmp"
	"container/list"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// A Monitor shows what campaigns do, to people and to their tools. The zero value is ready; one serves
// any number of campaigns, to which it is given by WithMonitor. Its counts go on over all campaigns for
// a lease. Reading it never keeps a campaign waiting.
//
// Of leases without a campaign it remembers the last 1,000 that had one, and forgets what it counted of others.
type Monitor struct {
	mu     sync.Mutex // protects following; taken before a leaseStats' mutex
	stats  map[types.NamespacedName]*leaseStats
	groups map[*group]bool // that this process takes part in
	ended  list.List       // the stats of leases without a campaign, the one whose campaign ended last at the back
}

// maxEnded is how many leases without a campaign a Monitor remembers.
const maxEnded = 1000

// A LeaseStatus is the state of one lease in this process. Its JSON is stable.
type LeaseStatus struct {
	Namespace    string `json:"namespace"`
	Name         string `json:"name"`
	Slot         int    `json:"slot,omitempty"` // of WithSlots, whose slots are leases with a status each
	Identity     string `json:"identity"`
	Group        string `json:"group,omitempty"`    // of which this is a member's own Lease (Spread, Join)
	Priority     int    `json:"priority,omitempty"` // of WithPriority
	FieldManager string `json:"fieldManager"`

	LeaseDurationSeconds float64 `json:"leaseDurationSeconds"`
	RenewDeadlineSeconds float64 `json:"renewDeadlineSeconds"`
	RenewIntervalSeconds float64 `json:"renewIntervalSeconds"`

	// Campaigning reports whether a campaign for the lease is running, since StartTime.
	Campaigning bool      `json:"campaigning"`
	StartTime   time.Time `json:"startTime,omitzero"`
	// Following is how the Lease is followed: by a "watch" of its own, by a "shared watch" of the
	// namespace, or by "poll"; "" while it cannot be, and while there is no campaign.
	Following string `json:"following"`

	// Leading reports whether this process certainly holds the lease and its work has not returned: by the lease, as
	// Session.ValidFor, and not by whether the work is to go on. Since is when the lease was last acquired, released
	// or lost by this process; before that, StartTime.
	Leading         bool      `json:"leading"`
	WindingDown     bool      `json:"windingDown"` // it leads, but its work was told to end
	Since           time.Time `json:"since,omitzero"`
	ValidForSeconds float64   `json:"validForSeconds"`        // how long leadership is certain without another renewal
	FencingToken    uint64    `json:"fencingToken,omitempty"` // of the session that leads
	Overrun         bool      `json:"overrun"`                // work goes on without the lease

	// Holder is who held the lease when it was last seen; nil for nobody.
	Holder          *HolderStatus `json:"holder,omitempty"`
	ResourceVersion string        `json:"resourceVersion,omitempty"`
	Updates         uint64        `json:"updates"`             // how often the Lease was seen to change
	UpdateTime      time.Time     `json:"updateTime,omitzero"` // when it last was

	Sessions uint64 `json:"sessions"`
	Renewals uint64 `json:"renewals"`
	Failures uint64 `json:"failures"` // failed requests, conflicts with other writers excluded
	// Losses are counted by reason: expired, slept, taken, deleted, emptied, edited, stalled; beside them yielded.
	Losses map[string]uint64 `json:"losses"`

	LastError     string    `json:"lastError,omitempty"`
	LastErrorTime time.Time `json:"lastErrorTime,omitzero"`

	LastRenewalSeconds float64   `json:"lastRenewalSeconds"` // how long the last renewal that succeeded took
	RenewalLatency     Histogram `json:"renewalLatency"`
}

// A HolderStatus describes the holder of a lease.
type HolderStatus struct {
	Identity    string    `json:"identity"`
	AcquireTime time.Time `json:"acquireTime,omitzero"` // by the holder's clock; zero if JSON cannot have its year
	RenewTime   time.Time `json:"renewTime,omitzero"`   // likewise
	Transitions int32     `json:"transitions"`
	ExpiryTime  time.Time `json:"expiryTime,omitzero"` // by ours: when it expires unless it is seen to be renewed
	Address     string    `json:"address,omitempty"`   // what the holder advertises
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

// Check returns an error when something is wrong that only a restart of the process will mend: work that goes on
// without its lease, a request or the program's own code that does not return, or a campaign whose claims fail
// without cause. A standby is healthy, and so is a process that cannot reach the API server. It fits
// controller-runtime's healthz.Checker.
func (m *Monitor) Check(*http.Request) error {
	var wrong []error
	for _, l := range m.all() {
		wrong = append(wrong, l.check())
	}
	for _, g := range m.allGroups() {
		wrong = append(wrong, g.check())
	}
	return errors.Join(wrong...)
}

// ServeHTTP answers GET with the status of all leases and groups as JSON: {"leases": [LeaseStatus, …],
// "groups": [GroupStatus, …]}; without groups, that field is missing.
func (m *Monitor) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "want GET or HEAD", http.StatusMethodNotAllowed)
		return
	}
	status, err := json.MarshalIndent(struct {
		Leases []LeaseStatus `json:"leases"`
		Groups []GroupStatus `json:"groups,omitempty"`
	}{m.Leases(), m.Groups()}, "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(append(status, '\n')) // fails only if the client is gone
}

func (m *Monitor) all() []*leaseStats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.stats))
}

// open returns the stats of the lease of c, and records that c is running.
func (m *Monitor) open(c *campaign) *leaseStats {
	if m == nil {
		return &leaseStats{campaigns: []*campaign{c}, losses: map[string]uint64{}}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	key := types.NamespacedName{Namespace: c.lease.namespace, Name: c.lease.name}
	l := m.stats[key]
	if l == nil {
		l = &leaseStats{monitor: m, losses: map[string]uint64{}}
		if m.stats == nil {
			m.stats = map[types.NamespacedName]*leaseStats{}
		}
		m.stats[key] = l
	}
	if l.ended != nil {
		m.ended.Remove(l.ended)
		l.ended = nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.campaigns = append(l.campaigns, c)
	return l
}

// leaseStats are what is remembered of one lease, over all campaigns for it.
type leaseStats struct {
	monitor *Monitor      // nil if nobody asks
	ended   *list.Element // where the monitor's list has it; protected by the monitor's mu

	mu        sync.Mutex    // protects following; held only to read or write them
	campaigns []*campaign   // that run, the newest last
	last      *LeaseStatus  // of the last campaign that ended; nil if none has
	returning []*call       // the calls of campaigns that ended, but for those that had returned when the last one did
	duration  time.Duration // of the last of them
	clock     clock         // likewise

	since         time.Time // when the lease was last acquired, released or lost
	updates       uint64    // seen by campaigns that ended
	sessions      uint64
	renewals      uint64
	failures      uint64
	losses        map[string]uint64
	lastError     error
	lastErrorTime time.Time
	lastRenewal   time.Duration
	latency       [len(latencyBounds)]uint64
	slower        uint64 // renewals that took longer than the last bound
	latencySum    time.Duration
}

// close records that c has ended. Nothing of it is kept but its status. It may be called again.
func (l *leaseStats) close(c *campaign) {
	if l.monitor != nil {
		l.monitor.mu.Lock()
		defer l.monitor.mu.Unlock()
	}
	if l.remove(c) && l.monitor != nil {
		l.monitor.endLocked(l, types.NamespacedName{Namespace: c.lease.namespace, Name: c.lease.name})
	}
}

// endLocked records that there is no campaign for the lease at key any more, and forgets the lease for which that has
// been so for the longest time, if there are too many. The caller holds mu.
func (m *Monitor) endLocked(l *leaseStats, key types.NamespacedName) {
	l.ended = m.ended.PushBack(key)
	if m.ended.Len() > maxEnded {
		delete(m.stats, m.ended.Remove(m.ended.Front()).(types.NamespacedName))
	}
}

// remove removes c from the campaigns that run, and reports whether it was the last.
func (l *leaseStats) remove(c *campaign) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.campaigns, c)
	if i < 0 {
		return false
	}
	l.campaigns = slices.Delete(l.campaigns, i, i+1)
	l.last, l.duration, l.clock = new(c.status()), c.options.duration, c.clock
	l.updates += l.last.Updates
	l.returning = append(stillUnderWay(l.returning), c.user.underWay()...)
	return len(l.campaigns) == 0
}

func stillUnderWay(calls []*call) []*call {
	return slices.DeleteFunc(calls, func(c *call) bool { return c.ended.Load() })
}

func (l *leaseStats) acquired() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sessions++
	l.since = time.Now()
}

func (l *leaseStats) released() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.since = time.Now()
}

func (l *leaseStats) lost(cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.since = time.Now()
	var why *loss
	if errors.As(cause, &why) {
		l.losses[why.reason]++
	}
}

// yielded counts a session that is to make way for another candidate.
func (l *leaseStats) yielded() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.losses[yielded]++
}

func (l *leaseStats) renewed(took time.Duration) {
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

func (l *leaseStats) requestFailed(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures++
	l.lastError, l.lastErrorTime = err, time.Now()
}

// setError records an error that is no failure of a request.
func (l *leaseStats) setError(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lastError, l.lastErrorTime = err, time.Now()
}

// status returns the status of the campaign that leads, else of the newest, with the counts of all.
func (l *leaseStats) status() LeaseStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	var s LeaseStatus
	if l.last != nil {
		s = *l.last
	}
	updates := l.updates
	for _, c := range l.campaigns {
		now := c.status()
		updates += now.Updates
		if !s.Leading || !s.Campaigning {
			s = now
		}
	}
	s.Updates = updates
	s.Since = l.since
	if s.Since.IsZero() {
		s.Since = s.StartTime
	}
	s.Sessions, s.Renewals, s.Failures = l.sessions, l.renewals, l.failures
	s.Losses = map[string]uint64{}
	for _, reason := range lossReasons {
		s.Losses[reason] = l.losses[reason]
	}
	s.LastErrorTime = l.lastErrorTime
	if l.lastError != nil {
		s.LastError = l.lastError.Error()
	}
	s.LastRenewalSeconds = l.lastRenewal.Seconds()
	s.RenewalLatency = l.histogram()
	s.Campaigning = len(l.campaigns) > 0
	return s
}

// status returns what the campaign itself knows of its lease.
func (c *campaign) status() LeaseStatus {
	s := LeaseStatus{
		Namespace:            c.lease.namespace,
		Name:                 c.lease.name,
		Slot:                 c.options.slot,
		Group:                c.options.group.name,
		Priority:             c.options.priority,
		Identity:             c.lease.identity,
		FieldManager:         c.lease.fieldManager,
		LeaseDurationSeconds: c.options.duration.Seconds(),
		RenewDeadlineSeconds: c.options.renewDeadline.Seconds(),
		RenewIntervalSeconds: c.options.renewInterval.Seconds(),
		Campaigning:          true,
		StartTime:            c.started,
	}
	c.reflector.describe(&s)
	h := c.current.Load()
	if h == nil {
		return s
	}
	s.Overrun = h.overran.Load()
	s.ValidForSeconds = h.validFor().Seconds()
	if s.Leading = s.ValidForSeconds > 0; s.Leading {
		s.WindingDown = h.Err() != nil
		s.FencingToken = h.token
	}
	return s
}

func (l *leaseStats) histogram() Histogram {
	h := Histogram{SumSeconds: l.latencySum.Seconds()}
	for i, bound := range latencyBounds {
		h.Count += l.latency[i]
		h.Buckets = append(h.Buckets, Bucket{bound, h.Count})
	}
	h.Count += l.slower
	return h
}

// check returns what is wrong with the campaigns for the lease.
func (l *leaseStats) check() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var wrong []error
	for _, c := range l.campaigns {
		wrong = append(wrong, c.check()...)
	}
	if l.returning = stillUnderWay(l.returning); len(l.returning) > 0 {
		c, over := mostOverdue(l.returning, l.clock)
		wrong = append(wrong, checkOverdue(l.last.Namespace+"/"+l.last.Name, l.duration, c, over))
	}
	return errors.Join(wrong...)
}

// check returns what is wrong with the campaign.
func (c *campaign) check() (wrong []error) {
	lease, d := c.lease.namespace+"/"+c.lease.name, c.options.duration
	if s := c.current.Load(); s != nil && s.overran.Load() {
		wrong = append(wrong, fmt.Errorf("lease %s: work goes on without it: %w", lease, s.Err()))
	}
	if since := c.claimsFailingSince.Load(); since != nil {
		if stalled := c.clock.now().mono.Sub(*since); stalled > d {
			wrong = append(wrong, fmt.Errorf("lease %s: campaign stuck: "+
				"claims have failed for %v although nothing happened to the Lease", lease, rounded(stalled)))
		}
	}
	return append(wrong, c.user.checkStuck(lease, d), c.reflector.checkStuck(lease, d))
}

// checkStuck returns an error if the shared watch that serves the reflector is stuck.
func (r *reflector) checkStuck(lease string, d time.Duration) error {
	r.mu.Lock()
	sub := r.subscription
	r.mu.Unlock()
	if sub == nil || !sub.used() {
		return nil
	}
	return sub.watch.user.checkStuck(lease, d)
}

// checkStuck returns an error if a call is over its limit by more than d, the duration of the lease.
func (u *userCode) checkStuck(lease string, d time.Duration) error {
	c, over := u.stuck()
	return checkOverdue(lease, d, c, over)
}

func checkOverdue(lease string, d time.Duration, c *call, over time.Duration) error {
	if over <= d {
		return nil
	}
	return fmt.Errorf("lease %s: campaign stuck: %s %v past its deadline", lease, c.what, rounded(over))
}
