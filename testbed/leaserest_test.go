package testbed_test

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"

	"github.com/leasehold-go/leasehold/internal/leaserest"
	"github.com/leasehold-go/leasehold/testbed/controlplane"
)

// TestLightClient: the client of Leases that leasehold brings along hears the same of a real API server as client-go's,
// in both encodings.
func TestLightClient(t *testing.T) {
	t.Parallel()
	server := controlplane.ForTest(t)
	for _, encoding := range []string{"application/json", "application/vnd.kubernetes.protobuf"} {
		t.Run(encoding, func(t *testing.T) {
			cfg := server.Config()
			cfg.ContentType = encoding
			next, err := rest.TransportFor(cfg)
			if err != nil {
				t.Fatal(err)
			}
			client, err := leaserest.New(cfg, next)
			if err != nil {
				t.Fatal(err)
			}
			ctx, namespace := t.Context(), server.Namespace(t)
			light, typed := client.Leases(namespace), leases(t, cfg).Leases(namespace)

			lease, err := light.Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "x"}},
				metav1.CreateOptions{FieldManager: "m"})
			if err != nil {
				t.Fatal(err)
			}
			opts := metav1.ListOptions{FieldSelector: "metadata.name=x", ResourceVersion: lease.ResourceVersion,
				AllowWatchBookmarks: true}
			open := func(watch watch.Interface, err error) watch.Interface {
				if err != nil {
					t.Fatal(err)
				}
				return watch
			}
			ours, theirs := open(light.Watch(ctx, opts)), open(typed.Watch(ctx, opts))
			defer ours.Stop()
			defer theirs.Stop()

			patch := func(kind types.PatchType, body string, opts metav1.PatchOptions) {
				t.Helper()
				opts.FieldManager = "m"
				got, err := light.Patch(ctx, "x", kind, []byte(body), opts)
				if err != nil {
					t.Fatal(err)
				}
				want, err := typed.Get(ctx, "x", metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				got.TypeMeta, want.TypeMeta = metav1.TypeMeta{}, metav1.TypeMeta{}
				if !reflect.DeepEqual(got, want) {
					t.Errorf("%+v\nwant %+v", got, want)
				}
			}
			patch(types.MergePatchType,
				`{"spec":{"holderIdentity":"a","leaseDurationSeconds":15,"renewTime":"2000-01-01T00:00:00.000001Z"}}`,
				metav1.PatchOptions{})
			patch(types.ApplyPatchType,
				`{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","spec":{"holderIdentity":"b"}}`,
				metav1.PatchOptions{Force: new(true)})
			_, err = light.Patch(ctx, "x", types.MergePatchType,
				fmt.Appendf(nil, `{"metadata":{"resourceVersion":%q}}`, lease.ResourceVersion), metav1.PatchOptions{})
			if !apierrors.IsConflict(err) {
				t.Errorf("a stale patch: %v", err)
			}
			if list, err := light.List(ctx, metav1.ListOptions{}); err != nil || len(list.Items) != 1 {
				t.Errorf("list: %v, %v", list, err)
			}
			if err := light.Delete(ctx, "x",
				metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &lease.UID}}); err != nil {
				t.Error(err)
			}
			if _, err := light.Get(ctx, "x", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				t.Errorf("get: %v", err)
			}
			for _, kind := range []watch.EventType{watch.Modified, watch.Modified, watch.Deleted} {
				got, want := nextEvent(t, ours), nextEvent(t, theirs)
				if got.Type != kind || !reflect.DeepEqual(got, want) {
					t.Errorf("%+v\nwant %+v, %s", got, want, kind)
				}
			}
		})
	}
}

// nextEvent returns the next event, without the type of its object.
func nextEvent(t *testing.T, w watch.Interface) watch.Event {
	t.Helper()
	select {
	case event := <-w.ResultChan():
		if lease, ok := event.Object.(*coordinationv1.Lease); ok {
			lease.TypeMeta = metav1.TypeMeta{}
		}
		return event
	case <-time.After(10 * time.Second):
		t.Fatal("no event")
	}
	return watch.Event{}
}
