package leasehold

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/leasehold-go/leasehold/internal/annotation"
)

// observe records what Holders yields, as "identity address", until the function that it returns is called.
func (w *world) observe(opts ...Option) func() []string {
	ctx, cancel := context.WithCancel(w.Context())
	done := make(chan struct{})
	var seen []string
	go func() {
		defer close(done)
		for h := range Holders(ctx, w.options("observer", opts...)...) {
			seen = append(seen, h.Identity+" "+h.Address)
		}
	}()
	synctest.Wait()
	return func() []string {
		cancel()
		<-done
		return seen
	}
}

// The address is there as long as its holder is, and no longer, whatever the next holder does about annotations.
func TestAdvertise(t *testing.T) {
	for _, tt := range []struct {
		name string
		next func(w *world)
		want []string
	}{
		{"released", func(w *world) {}, []string{" "}},
		{"the next one advertises too", func(w *world) {
			w.run("b", nil, WithAdvertise("b:80"))
		}, []string{" ", "b b:80"}},
		{"the next one does not", func(w *world) { w.run("b", nil) }, []string{" ", "b "}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				stop := w.observe()
				a := w.run("a", nil, WithAdvertise("10.0.0.7:8080"))
				w.sleep(time.Hour)
				if got := w.session(0).Holder().Address; got != "10.0.0.7:8080" {
					t.Errorf("the session's own holder has the address %q", got)
				}
				a.quit()
				if got := w.lease().Annotations; len(got) != 0 {
					t.Errorf("after the release the Lease has %v", got)
				}
				w.sleep(time.Second)
				tt.next(w)
				w.sleep(time.Minute)
				if got, want := stop(), append([]string{" ", "a 10.0.0.7:8080"}, tt.want...); !slices.Equal(got, want) {
					t.Errorf("Holders yielded %q, want %q", got, want)
				}
			})
		})
	}
}

// An address that somebody else left behind, or wrote for another term, is not shown. A change of the present one is.
func TestAdvertisedTerm(t *testing.T) {
	inWorld(t, func(w *world) {
		stop := w.observe()
		w.run("a", nil, WithAdvertise("a:80"))
		w.sleep(time.Second)
		w.steal("client-go's") // keeps the annotations
		w.sleep(time.Second)
		if got := w.lease().Annotations[annotation.Address]; got != "a:80" {
			t.Fatalf("the annotation says %q", got)
		}
		now := w.lease().Spec.AcquireTime.Time
		for _, change := range []map[string]string{
			{annotation.Address: "no term"},
			{annotation.Address: "another's", annotation.Term: annotation.FormatTerm(now.Add(time.Microsecond))},
			{annotation.Address: strings.Repeat("x", 1025), annotation.Term: annotation.FormatTerm(now)},
			{annotation.Address: "edited", annotation.Term: annotation.FormatTerm(now)},
			{annotation.Address: "", annotation.Term: annotation.FormatTerm(now)},
		} {
			w.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Annotations = change })
			w.sleep(time.Millisecond)
		}
		want := []string{" ", "a a:80", "client-go's ", "client-go's edited", "client-go's "}
		if got := stop(); !slices.Equal(got, want) {
			t.Errorf("Holders yielded %q, want %q", got, want)
		}
	})
}

// What a holder that crashed says of itself is not taken for what the next one says, which publishes something else.
func TestAdvertisedByAnother(t *testing.T) {
	for _, tt := range []struct {
		name        string
		first, next []Option
		want        annotation.Notes
	}{
		{"an address, then a priority", []Option{WithAdvertise("a:80")}, []Option{WithPriority(1)},
			annotation.Notes{Priority: 1, Prioritized: true}},
		{"a priority, then an address", []Option{WithPriority(1)}, []Option{WithAdvertise("b:80")},
			annotation.Notes{Address: "b:80"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inPriorityWorld(t, func(w *world) {
				w.run("a", nil, tt.first...)
				w.sleep(time.Second)
				w.run("b", nil, append(tt.next, WithFieldManager("another"))...)
				w.sleep(time.Second)
				w.cut("a")
				w.sleep(D + time.Second)
				w.wantLeader("b")
				got := annotation.Read(w.lease())
				got = annotation.Notes{Address: got.Address, Priority: got.Priority, Prioritized: got.Prioritized}
				if got != tt.want {
					t.Errorf("the holder says %+v, want %+v", got, tt.want)
				}
			})
		})
	}
}

// Annotations are no sign of life: a candidate waits no longer for a holder that does not renew.
func TestAnnotationsAreNoSignOfLife(t *testing.T) {
	inWorld(t, func(w *world) {
		w.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
			Spec: coordinationv1.LeaseSpec{
				HolderIdentity: new("dead"), LeaseDurationSeconds: new(int32(15)),
				AcquireTime: &metav1.MicroTime{Time: time.Now()}, RenewTime: &metav1.MicroTime{Time: time.Now()},
			}})
		w.run("b", nil)
		for i := range 15 {
			w.sleep(time.Second - time.Millisecond)
			w.srv.Edit(ns, name, func(l *coordinationv1.Lease) {
				l.Annotations = map[string]string{
					annotation.Term: annotation.FormatTerm(l.Spec.AcquireTime.Time), annotation.Address: fmt.Sprint(i),
				}
			})
		}
		w.sleep(100 * time.Millisecond)
		w.wantLeader("b")
	})
}

// A candidate that asks for nothing of this sends what it always has, byte for byte.
func TestSameBytesWithoutOptions(t *testing.T) {
	inWorld(t, func(w *world) {
		var log writeLog
		begin := time.Now()
		run := func(identity string) *runner {
			return w.run(identity, nil, func(o *options) {
				o.hooks.wrap = func(l Leases) Leases { return loggedLeases{l, &log} }
				o.hooks.chance = func(time.Duration) time.Duration { return 0 }
			})
		}
		a := run("a")
		w.sleep(time.Second)
		a.quit()
		run("b")
		w.sleep(time.Second)
		at := func(d time.Duration) string { return begin.Add(d).UTC().Format(metav1.RFC3339Micro) }
		want := []string{
			`{"metadata":{"name":"reconciler","namespace":"default"},"spec":{"holderIdentity":"a",` +
				`"leaseDurationSeconds":15,` +
				`"acquireTime":"` + at(0) + `","renewTime":"` + at(0) + `","leaseTransitions":0}}`,
			`{"metadata":{"resourceVersion":"1001"},"spec":{"renewTime":"` + at(750*time.Millisecond) + `"}}`,
			`{"metadata":{"resourceVersion":"1002"},"spec":{"holderIdentity":null,"leaseDurationSeconds":null,` +
				`"acquireTime":null,"renewTime":null}}`,
			`{"kind":"Lease","apiVersion":"coordination.k8s.io/v1","metadata":{"name":"reconciler",` +
				`"namespace":"default",` +
				`"uid":"` + string(w.lease().UID) +
				`","resourceVersion":"1003"},"spec":{"holderIdentity":"b","leaseDurationSeconds":15,` +
				`"acquireTime":"` + at(time.Second) + `","renewTime":"` + at(time.Second) + `","leaseTransitions":1}}`,
			`{"metadata":{"resourceVersion":"1004"},"spec":{"renewTime":"` + at(1750*time.Millisecond) + `"}}`,
		}
		if got := log.all(); !slices.Equal(got, want) {
			t.Errorf("sent\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// A writeLog has the bodies of writes.
type writeLog struct {
	mu     sync.Mutex
	bodies []string
}

func (l *writeLog) add(body []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bodies = append(l.bodies, string(body))
}

func (l *writeLog) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.bodies)
}

type loggedLeases struct {
	Leases
	log *writeLog
}

func (l loggedLeases) Create(
	ctx context.Context, lease *coordinationv1.Lease, opts metav1.CreateOptions,
) (*coordinationv1.Lease, error) {
	body, err := json.Marshal(lease)
	if err != nil {
		return nil, err
	}
	l.log.add(body)
	return l.Leases.Create(ctx, lease, opts)
}

func (l loggedLeases) Patch(
	ctx context.Context, name string, pt types.PatchType, data []byte, opts metav1.PatchOptions, sub ...string,
) (*coordinationv1.Lease, error) {
	l.log.add(data)
	return l.Leases.Patch(ctx, name, pt, data, opts, sub...)
}
