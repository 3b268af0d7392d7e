package leasehold

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/leasehold-go/leasehold/leasetest"
)

// A Lease is anybody's to write. Whatever it says, a candidate takes it at once when nobody is named
// as its holder, else when the recorded duration has passed (or its own, where none is recorded)
// since it first saw it; and it changes nothing but what it writes itself.
func TestOddContent(t *testing.T) {
	const (
		free  = 0
		never = -1
	)
	micro := func(t time.Time) *metav1.MicroTime { return &metav1.MicroTime{Time: t} }
	var (
		past   = micro(time.Date(1, 1, 1, 0, 0, 0, 1000, time.UTC))
		now    = micro(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)) // when a bubble begins
		future = micro(time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC))
	)
	for _, tt := range []struct {
		name string
		spec coordinationv1.LeaseSpec
		wait time.Duration
	}{
		{"empty spec", coordinationv1.LeaseSpec{}, free},
		{`holder ""`, coordinationv1.LeaseSpec{HolderIdentity: new("")}, free},
		{`holder "" with all the rest`,
			coordinationv1.LeaseSpec{HolderIdentity: new(""), LeaseDurationSeconds: new(int32(30)),
				AcquireTime: now, RenewTime: now, LeaseTransitions: new(int32(5))}, free},
		{"all but a holder", coordinationv1.LeaseSpec{LeaseDurationSeconds: new(int32(30)),
			AcquireTime: now, RenewTime: now, LeaseTransitions: new(int32(5))}, free},
		{"times only", coordinationv1.LeaseSpec{AcquireTime: now, RenewTime: future}, free},
		{"duration only", coordinationv1.LeaseSpec{LeaseDurationSeconds: new(int32(30))}, free},
		{"transitions only", coordinationv1.LeaseSpec{LeaseTransitions: new(int32(7))}, free},
		{"transitions negative", coordinationv1.LeaseSpec{LeaseTransitions: new(int32(-7))}, free},
		{"transitions at the lower limit", coordinationv1.LeaseSpec{LeaseTransitions: new(int32(math.MinInt32))}, free},
		{"transitions below the limit",
			coordinationv1.LeaseSpec{LeaseTransitions: new(int32(math.MaxInt32 - 1))}, free},
		{"transitions at the limit", coordinationv1.LeaseSpec{LeaseTransitions: new(int32(math.MaxInt32))}, free},
		{"transitions beyond 16 bits", coordinationv1.LeaseSpec{LeaseTransitions: new(int32(math.MaxUint16))}, free},
		{"free, duration negative", coordinationv1.LeaseSpec{LeaseDurationSeconds: new(int32(-1))}, free},

		{"holder only", coordinationv1.LeaseSpec{HolderIdentity: new("b")}, 15 * time.Second},
		{"holder of a blank", coordinationv1.LeaseSpec{HolderIdentity: new(" ")}, 15 * time.Second},
		{"holder of 64 KiB", coordinationv1.LeaseSpec{HolderIdentity: new(strings.Repeat("b", 64<<10))},
			15 * time.Second},
		{"holder with our identity, but not our term", coordinationv1.LeaseSpec{HolderIdentity: new("a"),
			LeaseDurationSeconds: new(int32(30)), AcquireTime: now, RenewTime: now}, 30 * time.Second},
		{"held, no times", coordinationv1.LeaseSpec{HolderIdentity: new("b"), LeaseDurationSeconds: new(int32(30))},
			30 * time.Second},
		{"held, duration 1", coordinationv1.LeaseSpec{HolderIdentity: new("b"), LeaseDurationSeconds: new(int32(1))},
			time.Second},
		{"held, duration 0", coordinationv1.LeaseSpec{HolderIdentity: new("b"), LeaseDurationSeconds: new(int32(0))},
			15 * time.Second},
		{"held, duration negative",
			coordinationv1.LeaseSpec{HolderIdentity: new("b"), LeaseDurationSeconds: new(int32(-30))},
			15 * time.Second},
		{"held, duration at the lower limit",
			coordinationv1.LeaseSpec{HolderIdentity: new("b"), LeaseDurationSeconds: new(int32(math.MinInt32))},
			15 * time.Second},
		{"held, duration at the upper limit",
			coordinationv1.LeaseSpec{HolderIdentity: new("b"), LeaseDurationSeconds: new(int32(math.MaxInt32))},
			maxDuration},
		{"held, renewed in the far past",
			coordinationv1.LeaseSpec{HolderIdentity: new("b"), LeaseDurationSeconds: new(int32(30)),
				AcquireTime: past, RenewTime: past}, 30 * time.Second},
		{"held, renewed in the far future",
			coordinationv1.LeaseSpec{HolderIdentity: new("b"), LeaseDurationSeconds: new(int32(30)),
				AcquireTime: future, RenewTime: future}, 30 * time.Second},
		{"held, renewed now", coordinationv1.LeaseSpec{HolderIdentity: new("b"), LeaseDurationSeconds: new(int32(30)),
			AcquireTime: now, RenewTime: now}, 30 * time.Second},
		{"held, acquired after it was renewed",
			coordinationv1.LeaseSpec{HolderIdentity: new("b"), LeaseDurationSeconds: new(int32(30)),
				AcquireTime: future, RenewTime: past}, 30 * time.Second},
		{"held, transitions at the limit",
			coordinationv1.LeaseSpec{HolderIdentity: new("b"), LeaseTransitions: new(int32(math.MaxInt32))},
			15 * time.Second},
		{"held, strategy and preferred holder", coordinationv1.LeaseSpec{HolderIdentity: new("b"),
			Strategy: new(coordinationv1.OldestEmulationVersion), PreferredHolder: new("c")}, never},
		{"free, strategy", coordinationv1.LeaseSpec{Strategy: new(coordinationv1.OldestEmulationVersion)}, never},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				found := &coordinationv1.Lease{ObjectMeta: crowdedMetadata(), Spec: tt.spec}
				took := oneTerm(t, found, tt.wait)
				if took != tt.wait {
					t.Errorf("taken after %v, want %v", took, tt.wait)
				}
			})
		})
	}
}

// crowdedMetadata is metadata as full of other people's doings as the API server lets it be.
func crowdedMetadata() metav1.ObjectMeta {
	const limit = 256 << 10 // of all annotations together: apimachinery, TotalAnnotationSizeLimitB
	meta := metav1.ObjectMeta{
		Namespace: "default",
		Name:      "x",
		Labels:    map[string]string{"team": "blue", "app.kubernetes.io/managed-by": "somebody", "empty": ""},
		Annotations: map[string]string{"note": "hands off", "empty": "",
			"control-plane.alpha.kubernetes.io/leader": `{"holderIdentity":"b"}`},
		OwnerReferences: []metav1.OwnerReference{
			{APIVersion: "apps/v1", Kind: "Deployment", Name: "web", UID: "d-1", Controller: new(true),
				BlockOwnerDeletion: new(false)},
			{APIVersion: "v1", Kind: "Pod", Name: "web-0", UID: "p-1"},
		},
		Finalizers: []string{"example.com/first", "example.com/second"},
	}
	size := 0
	for k, v := range meta.Annotations {
		size += len(k) + len(v)
	}
	meta.Annotations["large"] = strings.Repeat("x", limit-size-len("large"))
	return meta
}

// oneTerm puts the Lease found on a server, has candidate "a" wait for it and hold it for three
// renewals, and returns how long after the campaign began it was taken: if the result is negative,
// not within a minute after wait, which is when it should be. It checks that every write of "a"
// leaves alone what others wrote, and that "a" is quiet while there is nothing to do.
func oneTerm(t *testing.T, found *coordinationv1.Lease, wait time.Duration) time.Duration {
	t.Helper()
	srv := leasetest.NewServer()
	found = srv.Put(found)
	began := time.Now()
	took := time.Duration(-1)
	srv.OnCommit(func(c leasetest.Change) {
		if c.Client != "a" {
			return
		}
		if took < 0 {
			took = time.Since(began)
		}
		if c.Type != watch.Modified {
			t.Errorf("the Lease was %s", c.Type)
			return
		}
		if diff := differOutsideOurFields(c.Old, c.New); diff != "" {
			t.Error(diff)
		}
	})
	early := 0
	srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
		if time.Since(began) < wait/2 {
			early++
		}
		return leasetest.Fault{}
	})

	ctx, cancel := context.WithTimeout(t.Context(), wait+time.Minute)
	defer cancel()
	var err error
	led := false
	for s := range Sessions(ctx, WithLease(found.Name), WithNamespace(found.Namespace), WithIdentity("a"),
		WithClient(srv.Client("a")), WithError(&err), inVirtualTime, unlogged) {
		led = true
		if n := srv.Client("a").Requests(); n > 4 || early > 2 {
			t.Errorf("%d requests early on and %d in all, want get and watch, then get again and apply", early, n)
		}
		lease := srv.Lease(found.Namespace, found.Name)
		if got, want := describe(lease.Spec), describe(coordinationv1.LeaseSpec{
			HolderIdentity: new("a"), LeaseDurationSeconds: new(int32(15)),
			LeaseTransitions: new(onceMore(found.Spec.LeaseTransitions)),
			AcquireTime:      lease.Spec.AcquireTime, RenewTime: lease.Spec.AcquireTime,
			Strategy: found.Spec.Strategy, PreferredHolder: found.Spec.PreferredHolder,
		}); got != want {
			t.Errorf("acquired as %s\nwant        %s", got, want)
		}
		if h := s.Holder(); h.Identity != "a" || h.Transitions != *lease.Spec.LeaseTransitions {
			t.Errorf("holder %+v", h)
		}
		time.Sleep(4 * time.Second)
		srv.Edit(found.Namespace, found.Name, func(l *coordinationv1.Lease) {
			if l.Labels == nil {
				l.Labels = map[string]string{}
			}
			l.Labels["edited"] = "meanwhile"
		})
		time.Sleep(6 * time.Second)
		if s.Err() != nil {
			t.Errorf("lost: %v", s.Err())
		}
		if renewed := srv.Lease(found.Namespace, found.Name).Spec.RenewTime; time.Since(renewed.Time) > 3*time.Second {
			t.Errorf("last renewed %v ago", time.Since(renewed.Time))
		}
		break
	}
	if !led {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the campaign ended with %v", err)
		}
		return -1
	}
	if err != nil {
		t.Error(err)
	}
	left := srv.Lease(found.Namespace, found.Name)
	if got, want := describe(left.Spec), describe(coordinationv1.LeaseSpec{
		LeaseTransitions: new(onceMore(found.Spec.LeaseTransitions)),
		Strategy:         found.Spec.Strategy, PreferredHolder: found.Spec.PreferredHolder,
	}); got != want {
		t.Errorf("released as %s\nwant        %s", got, want)
	}
	if left.Labels["edited"] != "meanwhile" {
		t.Error("a label that was set meanwhile is gone")
	}
	delete(left.Labels, "edited")
	if diff := differOutsideOurFields(found, left); diff != "" {
		t.Error(diff)
	}
	return took
}

// onceMore counts one transition more, as far as an int32 does.
func onceMore(transitions *int32) int32 {
	if transitions == nil {
		return 1
	}
	return int32(min(int64(max(0, *transitions))+1, math.MaxInt32))
}

func describe(spec coordinationv1.LeaseSpec) string {
	text, err := json.Marshal(spec)
	return fmt.Sprint(string(text), err)
}

// differOutsideOurFields returns what differs between two states of a Lease in what a candidate does
// not write, or "".
func differOutsideOurFields(a, b *coordinationv1.Lease) string {
	others := func(l *coordinationv1.Lease) *coordinationv1.Lease {
		l = l.DeepCopy()
		l.ResourceVersion = ""
		l.ManagedFields = nil
		l.Spec = coordinationv1.LeaseSpec{Strategy: l.Spec.Strategy, PreferredHolder: l.Spec.PreferredHolder}
		if len(l.Labels) == 0 {
			l.Labels = nil
		}
		return l
	}
	was, is := others(a), others(b)
	if !reflect.DeepEqual(was, is) {
		return fmt.Sprintf("what others wrote was changed from %.2000v\nto %.2000v", was, is)
	}
	return ""
}

// Who manages which part of the metadata stays as it was, so that others can go on applying theirs.
func TestOwnershipOfMetadataIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := leasetest.NewServer()
		srv.Put(&coordinationv1.Lease{ObjectMeta: crowdedMetadata(),
			Spec: coordinationv1.LeaseSpec{HolderIdentity: new("")}})
		for s := range Sessions(t.Context(), WithLease("x"), WithNamespace("default"), WithClient(srv.Client("a")),
			inVirtualTime, unlogged) {
			time.Sleep(10 * time.Second)
			if s.Err() != nil {
				t.Errorf("lost: %v", s.Err())
			}
			break
		}
		for _, entry := range srv.Lease("default", "x").ManagedFields {
			hasMetadata := strings.Contains(entry.FieldsV1.GetRawString(), "f:metadata")
			if want := entry.Manager == "kubectl-edit"; hasMetadata != want {
				t.Errorf("manager %s (%s) has metadata: %v, want %v", entry.Manager, entry.Operation, hasMetadata, want)
			}
		}
	})
}

// A second process with our identity is somebody else, even to a campaign that held the lease
// before: it is waited out as any holder is.
func TestSecondProcessWithOurIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := leasetest.NewServer()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		var taken time.Time
		for s := range Sessions(ctx, WithLease("x"), WithNamespace("default"), WithIdentity("a"),
			WithClient(srv.Client("a")), inVirtualTime, unlogged) {
			if !taken.IsZero() {
				if after := time.Since(taken); after != 30*time.Second {
					t.Errorf("taken back after %v, want 30s", after)
				}
				break
			}
			time.Sleep(10 * time.Second)
			taken = time.Now()
			srv.Edit("default", "x", func(l *coordinationv1.Lease) {
				l.Spec.AcquireTime = &metav1.MicroTime{Time: taken}
				l.Spec.RenewTime = l.Spec.AcquireTime
				l.Spec.LeaseDurationSeconds = new(int32(30))
			})
			<-s.Done()
			const want = `lease lost: now held by another process with the same identity "a"`
			if got := errorText(s.Err()); got != want {
				t.Errorf("ended with %s, want %s", got, want)
			}
			if after := time.Since(taken); after > 0 {
				t.Errorf("lost after %v, want at once", after)
			}
		}
	})
}

// A Lease that somebody deleted stays, while it has finalizers, and is a Lease like any other until
// it is gone.
func TestLeaseThatIsBeingDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		meta := crowdedMetadata()
		meta.DeletionTimestamp = &metav1.Time{Time: time.Date(1999, 12, 31, 0, 0, 0, 0, time.UTC).Local()}
		meta.DeletionGracePeriodSeconds = new(int64(0))
		took := oneTerm(t, &coordinationv1.Lease{ObjectMeta: meta,
			Spec: coordinationv1.LeaseSpec{HolderIdentity: new("b")}}, 15*time.Second)
		if took != 15*time.Second {
			t.Errorf("taken after %v, want 15s", took)
		}
	})
}

// Content that the API server does not let anybody write over keeps a candidate waiting, without
// many requests, until somebody mends it.
func TestContentThatTheServerRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := leasetest.NewServer()
		srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "x",
			Labels: map[string]string{"not a label!": ""}}})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		began := time.Now()
		time.AfterFunc(5*time.Minute, func() {
			if n := srv.Client("a").Requests(); n > 400 {
				t.Errorf("%d requests in five minutes", n)
			}
			srv.Edit("default", "x", func(l *coordinationv1.Lease) { l.Labels = nil })
		})
		var err error
		for range Sessions(ctx, WithLease("x"), WithNamespace("default"), WithClient(srv.Client("a")), WithError(&err),
			inVirtualTime, unlogged) {
			if late := time.Since(began) - 5*time.Minute; late < 0 || late > 4*time.Second {
				t.Errorf("taken %v after it was mended", late)
			}
			break
		}
		if err != nil {
			t.Error(err)
		}
	})
}

// FuzzLease builds a Lease from raw JSON, and sets those fields of its spec that set says: 1 the
// holder, 2 the duration, 4 the transitions, 8 the acquisition time, 16 the renewal time.
func FuzzLease(f *testing.F) {
	f.Add([]byte(`{}`), uint8(0), "", int32(0), int32(0), int64(0), int64(0))
	f.Add([]byte(`{"metadata":{"labels":{"a":"b"},"annotations":{"c":"d"},"finalizers":["example.com/f"]}}`),
		uint8(31), "b", int32(15), int32(3), int64(1777636800_000000), int64(1777636860_000000))
	f.Add([]byte(`{"metadata":{"uid":"u","resourceVersion":"x","deletionTimestamp":"2026-05-01T12:00:00Z",`+
		`"finalizers":["example.com/f"]}}`),
		uint8(3), "b", int32(-15), int32(0), int64(0), int64(0))
	f.Add([]byte(`{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Pod","name":"p","uid":"u"}],`+
		`"generation":7,"managedFields":[{"manager":"m"}]}}`),
		uint8(7), "a", int32(math.MaxInt32), int32(math.MaxInt32), int64(0), int64(0))
	f.Add([]byte(`{"spec":{"holderIdentity":"b","strategy":"OldestEmulationVersion","preferredHolder":"c",`+
		`"renewTime":"0001-01-01T00:00:00.000000Z"}}`),
		uint8(16), "", int32(0), int32(0), int64(0), int64(math.MaxInt64))
	f.Add([]byte(`{"spec":{"acquireTime":"9999-12-31T23:59:59.999999Z"}}`), uint8(4), "", int32(0), int32(-1), int64(0),
		int64(0))
	f.Fuzz(func(t *testing.T, raw []byte, set uint8, holder string, duration, transitions int32, acquired,
		renewed int64) {
		lease := &coordinationv1.Lease{}
		if json.Unmarshal(raw, lease) != nil {
			lease = &coordinationv1.Lease{}
		}
		lease.Namespace, lease.Name = "default", "x"
		if len(lease.Finalizers) == 0 {
			lease.DeletionTimestamp = nil // nothing would keep it from being gone
		}
		spec := &lease.Spec
		if set&1 != 0 {
			spec.HolderIdentity = new(strings.ToValidUTF8(holder, "?")) // as JSON has it
		}
		if set&2 != 0 {
			spec.LeaseDurationSeconds = &duration
		}
		if set&4 != 0 {
			spec.LeaseTransitions = &transitions
		}
		if set&8 != 0 {
			spec.AcquireTime = fourDigitYear(acquired)
		}
		if set&16 != 0 {
			spec.RenewTime = fourDigitYear(renewed)
		}

		wait := time.Duration(0)
		if spec.HolderIdentity != nil && *spec.HolderIdentity != "" {
			wait = 15 * time.Second
			if d := spec.LeaseDurationSeconds; d != nil && *d > 0 {
				wait = time.Duration(*d) * time.Second
			}
		}
		synctest.Test(t, func(t *testing.T) {
			refused := refusesToWrite(t, lease)
			took := oneTerm(t, lease, wait)
			if spec.Strategy != nil && *spec.Strategy != "" {
				wait = -1
			}
			if refused == nil && took != wait {
				t.Errorf("taken after %v, want %v", took, wait)
			}
			if refused != nil && took >= 0 {
				t.Errorf("taken after %v, although the server refuses: %v", took, refused)
			}
		})
	})
}

// fourDigitYear returns the time that is so many microseconds after 1970, brought into the years
// that RFC 3339 can write.
func fourDigitYear(microseconds int64) *metav1.MicroTime {
	first, last := time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC)
	t := time.UnixMicro(microseconds)
	if t.Before(first) {
		t = first
	}
	if t.After(last) {
		t = last
	}
	return &metav1.MicroTime{Time: t}
}

// refusesToWrite returns why the API server would let nobody take such a Lease: something in it
// that a candidate may not change is not valid.
func refusesToWrite(t *testing.T, lease *coordinationv1.Lease) error {
	t.Helper()
	srv := leasetest.NewServer()
	srv.Put(lease)
	_, err := srv.Client("probe").Leases(lease.Namespace).Patch(t.Context(), lease.Name, types.MergePatchType,
		[]byte(`{"spec":{"leaseDurationSeconds":1,"leaseTransitions":1,"holderIdentity":"probe"}}`),
		metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
	return err
}
