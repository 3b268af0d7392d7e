package leasehold

import (
	"fmt"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientrecord "k8s.io/client-go/tools/record"
	"k8s.io/client-go/tools/reference"
)

// Kubernetes Events tell who began and who ceased to lead, in client-go's words, whether the lease
// was given back, lost, or its Lease deleted.
func TestEvents(t *testing.T) {
	inWorld(t, func(w *world) {
		recorder := &rememberer{FakeRecorder: clientrecord.NewFakeRecorder(100)}
		want := func(events ...string) {
			t.Helper()
			w.sleep(0)
			for _, event := range events {
				select {
				case got := <-recorder.Events:
					if got != "Normal LeaderElection "+event {
						w.Errorf("event %q, want %q", got, event)
					}
				default:
					w.Errorf("no event %q", event)
				}
			}
			select {
			case got := <-recorder.Events:
				w.Errorf("event %q too many", got)
			default:
			}
		}
		about := func(leases ...*coordinationv1.Lease) {
			t.Helper()
			for i, object := range recorder.forget() {
				ref, err := reference.GetReference(runtime.NewScheme(), object) // the object names its own kind
				if err != nil {
					w.Fatal(err)
				}
				if got, want := fmt.Sprintf("%s %s %s/%s %s", ref.APIVersion, ref.Kind, ref.Namespace, ref.Name,
					ref.UID),
					fmt.Sprintf("coordination.k8s.io/v1 Lease default/reconciler %s", leases[i].UID); got != want {
					w.Errorf("event %d is about %s, want %s", i, got, want)
				}
			}
		}
		a := w.run("a", nil, WithEventRecorder(recorder))
		want("a became leader")
		lease := w.lease()
		about(lease)
		w.sleep(long(24 * time.Hour))
		want()
		w.srv.Delete(ns, name)
		want("a stopped leading", "a became leader")
		about(lease, w.lease()) // the one that is gone, then the new one
		a.quit()
		want("a stopped leading")
		about(w.lease())

		b := w.run("b", nil)
		a = w.run("a", nil, WithEventRecorder(recorder))
		w.sleep(time.Minute)
		a.quit()
		want() // a standby
		b.quit()
	})
}

// A rememberer remembers what its events are about.
type rememberer struct {
	*clientrecord.FakeRecorder
	mu      sync.Mutex
	objects []runtime.Object
}

func (r *rememberer) Eventf(object runtime.Object, kind, reason, format string, args ...any) {
	r.mu.Lock()
	r.objects = append(r.objects, object)
	r.mu.Unlock()
	r.FakeRecorder.Eventf(object, kind, reason, format, args...)
}

func (r *rememberer) forget() []runtime.Object {
	r.mu.Lock()
	defer r.mu.Unlock()
	objects := r.objects
	r.objects = nil
	return objects
}
