package leasetest_test

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"github.com/leasehold-go/leasehold/leasetest"
)

// keepRenewing stands for the program under test: it renews a lease each second until it fails.
func keepRenewing(ctx context.Context, leases coordinationv1client.LeaseInterface, lease *coordinationv1.Lease) error {
	for {
		time.Sleep(time.Second)
		body := fmt.Appendf(nil, `{"metadata":{"resourceVersion":%q},"spec":{"renewTime":%q}}`,
			lease.ResourceVersion, time.Now().UTC().Format(metav1.RFC3339Micro))
		var err error
		if lease, err = leases.Patch(ctx, lease.Name, types.MergePatchType, body, metav1.PatchOptions{}); err != nil {
			return err
		}
	}
}

// A user's test: half a minute of renewals, which takes milliseconds, and then a reply that is lost.
func TestRenewalWhoseReplyIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := leasetest.NewServer()
		lease := srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "job"}})

		client := srv.Client("worker")
		client.OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Count == 30 {
				return leasetest.Fault{Drop: leasetest.TheReply, Err: leasetest.ConnectionReset()}
			}
			return leasetest.Fault{}
		})

		start := time.Now()
		err := keepRenewing(t.Context(), client.Leases("default"), lease)
		if d := time.Since(start); d != 30*time.Second || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("failed after %v: %v", d, err)
		}
		if renewed := srv.Lease("default", "job").Spec.RenewTime; renewed == nil || !renewed.Time.Equal(time.Now()) {
			t.Errorf("renewed at %v: the write whose reply was lost has not taken effect", renewed)
		}
	})
}

func ExampleServer() {
	srv := leasetest.NewServer()
	ctx := context.Background()

	a, err := srv.Client("a").Leases("default").Create(ctx,
		&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "job"}}, metav1.CreateOptions{})
	fmt.Println(a.ResourceVersion, err)

	srv.Edit("default", "job", func(l *coordinationv1.Lease) { l.Labels = map[string]string{"seen": "true"} })

	_, err = srv.Client("b").Leases("default").Update(ctx, a, metav1.UpdateOptions{})
	fmt.Println(apierrors.IsConflict(err))
	// Output:
	// 1001 <nil>
	// true
}
