package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// A change of a lease: another holder, none, or one that stopped renewing it. A renewal is none. One of a group is that
// of a member's own Lease, or of a key: another owner, or none. The JSON is stable: report records it.
type change struct {
	Time            time.Time `json:"time"` // when it was seen
	Namespace       string    `json:"namespace"`
	Name            string    `json:"name"`
	Status          string    `json:"status"` // one of the following
	Holder          string    `json:"holder,omitempty"`
	Transitions     int32     `json:"transitions"`
	DurationSeconds int32     `json:"durationSeconds,omitempty"` // of the lease; 0 if it has no holder

	Group string     `json:"group,omitempty"`
	Key   string     `json:"key,omitempty"`   // of the group, whose table has the name; Holder owns it
	Cause string     `json:"cause,omitempty"` // of a key: why
	Since *time.Time `json:"since,omitempty"` // of a member: when its term began, by its own clock
}

const (
	held    = "held"
	free    = "free"
	expired = "expired" // not seen to be renewed for the duration
	missing = "missing" // there is no such Lease, or key
	moving  = "moving"  // a key, which was asked back from its owner
	ended   = "ended"   // the last change of a recording, of no lease: the watch ended
)

// An event is a change with the Lease as it was last seen; nil if it never was.
type event struct {
	change
	lease *coordinationv1.Lease
}

// observe follows the leases of a selection. It calls emit for the first state of each and for each change, on one
// goroutine. It returns when ctx ends, or the first read fails.
func (s selection) observe(ctx context.Context, t *tool, emit func(event)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	followers := []follower{{selection: s}}
	if len(s.names) > 0 {
		followers = nil
		for _, name := range s.names {
			followers = append(followers, follower{selection: s, name: name})
		}
	}
	news := make(chan []sight)
	failed := make(chan error, len(followers))
	for _, f := range followers {
		f.tool, f.news = t, news
		go func() { failed <- f.follow(ctx) }()
	}
	o := observer{leases: map[types.NamespacedName]*observed{}, emit: emit}
	if s.group != "" {
		o.group = newGroupObserver(s.group, emit, func(err error) {
			t.log.Warn("the group's table cannot be read", "group", s.group, "error", err)
		})
		o.emit = o.group.change
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		now := time.Now()
		timer.Reset(o.expire(now))
		o.updateGroup(now)
		select {
		case sights := <-news:
			now := time.Now()
			for _, s := range sights {
				o.see(s, now)
			}
		case err := <-failed:
			if err != nil {
				return err
			}
		case <-timer.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// A sight is a Lease as it was seen; nil if it is missing.
type sight struct {
	key   types.NamespacedName
	lease *coordinationv1.Lease
}

// An observer tells changes from renewals.
type observer struct {
	leases map[types.NamespacedName]*observed
	emit   func(event)
	group  *groupObserver // nil if the leases are not those of a group
}

type observed struct {
	lease *coordinationv1.Lease // as it was last seen
	last  change                // as it was emitted
	due   time.Time             // when it expires; zero if it does not
}

// updateGroup emits what has changed in the group, if there is one.
func (o *observer) updateGroup(now time.Time) {
	if o.group != nil {
		o.group.update(now)
	}
}

// see records s, and emits it if it is a change.
func (o *observer) see(s sight, now time.Time) {
	if o.group != nil {
		o.group.see(s, now)
	}
	l, known := o.leases[s.key]
	if !known {
		l = &observed{}
		o.leases[s.key] = l
	}
	next := change{Namespace: s.key.Namespace, Name: s.key.Name, Status: missing, Transitions: l.last.Transitions}
	l.due = time.Time{}
	if s.lease != nil {
		spec := s.lease.Spec
		next.Status, next.Holder, next.Transitions = free, holderOf(spec), valueOf(spec.LeaseTransitions)
		if next.Holder != "" {
			next.Status, next.DurationSeconds = held, valueOf(spec.LeaseDurationSeconds)
			if next.DurationSeconds > 0 {
				l.due = now.Add(time.Duration(next.DurationSeconds) * time.Second)
			}
		}
		l.lease = s.lease
	}
	o.emitChange(l, next, now)
}

// emitChange emits next unless it equals the last change but for its time.
func (o *observer) emitChange(l *observed, next change, now time.Time) {
	next.Time = l.last.Time
	if next == l.last {
		return
	}
	next.Time = now.Round(0) // as a recording has it
	l.last = next
	o.emit(event{next, l.lease})
}

// expire emits the leases that have expired at now, and returns how long until the next may.
func (o *observer) expire(now time.Time) time.Duration {
	wake := time.Hour
	keys := slices.SortedFunc(maps.Keys(o.leases),
		func(a, b types.NamespacedName) int { return cmp.Compare(a.String(), b.String()) })
	for _, key := range keys {
		l := o.leases[key]
		if l.due.IsZero() {
			continue
		}
		if left := l.due.Sub(now); left > 0 {
			wake = min(wake, left)
			continue
		}
		l.due = time.Time{}
		next := l.last
		next.Status = expired
		o.emitChange(l, next, now)
	}
	return wake
}

// A follower reads and watches leases: all that are selected, or one by its name.
type follower struct {
	selection
	name  string
	tool  *tool
	news  chan<- []sight
	known map[types.NamespacedName]bool
}

// follow reports the leases until ctx ends, or the first read fails.
func (f *follower) follow(ctx context.Context) error {
	f.known = map[types.NamespacedName]bool{}
	for first, failing := true, false; ctx.Err() == nil; first = false {
		version, err := f.read(ctx)
		if err == nil {
			err = f.watch(ctx, version)
			failing = failing && err != nil
		} else if first && ctx.Err() == nil {
			return err
		}
		if err != nil && !failing && ctx.Err() == nil {
			failing = true
			f.tool.log.Warn("the watch failed: the leases are read every two seconds", "error", err)
		}
		pause := 100 * time.Millisecond
		if err != nil {
			pause = 2 * time.Second
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
	return nil
}

// read reports the present state of all leases, and which are gone.
func (f *follower) read(ctx context.Context) (version string, err error) {
	var leases []coordinationv1.Lease
	if f.name != "" {
		l, err := f.client.Leases(f.namespace).Get(ctx, f.name, metav1.GetOptions{})
		switch {
		case err == nil:
			leases, version = append(leases, *l), l.ResourceVersion
		case apierrors.IsNotFound(err): // it may be created later
			f.known[types.NamespacedName{Namespace: f.namespace, Name: f.name}] = true
		default:
			return "", advise(err, "get", f.namespace, f.name)
		}
	} else {
		list, err := f.client.Leases(f.namespace).List(ctx, metav1.ListOptions{LabelSelector: f.selector})
		if err != nil {
			return "", advise(err, "list", f.namespace, "")
		}
		leases, version = list.Items, list.ResourceVersion
	}
	var sights []sight
	there := map[types.NamespacedName]bool{}
	for i := range leases {
		s := see(&leases[i])
		there[s.key] = true
		sights = append(sights, s)
	}
	for key := range f.known {
		if !there[key] {
			sights = append(sights, sight{key: key})
		}
	}
	f.known = there
	return version, f.report(ctx, sights...)
}

func see(l *coordinationv1.Lease) sight {
	return sight{types.NamespacedName{Namespace: l.Namespace, Name: l.Name}, l}
}

func (f *follower) report(ctx context.Context, sights ...sight) error {
	select {
	case f.news <- sights:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// watch reports the changes after version, until the API server ends the watch.
func (f *follower) watch(ctx context.Context, version string) error {
	opts := metav1.ListOptions{LabelSelector: f.selector, ResourceVersion: version}
	if f.name != "" {
		opts.FieldSelector = fields.OneTermEqualSelector("metadata.name", f.name).String()
	}
	w, err := f.client.Leases(f.namespace).Watch(ctx, opts)
	if err != nil {
		return advise(err, "watch", f.namespace, f.name)
	}
	defer w.Stop()
	for event := range w.ResultChan() {
		if event.Type == watch.Error {
			if err := apierrors.FromObject(event.Object); !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
				return err
			}
			return nil
		}
		l, ok := event.Object.(*coordinationv1.Lease)
		if !ok {
			return fmt.Errorf("the watch returned a %T instead of a Lease", event.Object)
		}
		s := see(l)
		f.known[s.key] = true
		if event.Type == watch.Deleted {
			s.lease = nil
			delete(f.known, s.key)
		}
		if err := f.report(ctx, s); err != nil {
			return err
		}
	}
	return nil
}
