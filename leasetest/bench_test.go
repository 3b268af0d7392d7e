package leasetest_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	coordinationv1apply "k8s.io/client-go/applyconfigurations/coordination/v1"

	"github.com/leasehold-go/leasehold/leasetest"
)

func BenchmarkRenew(b *testing.B) {
	leases := leasetest.NewServer().Client("a").Leases("default")
	lease, err := leases.Create(context.Background(), &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "x"}},
		metav1.CreateOptions{})
	if err != nil {
		b.Fatal(err)
	}
	at := time.Now().UTC()
	for b.Loop() {
		at = at.Add(time.Second)
		body := fmt.Appendf(nil, `{"metadata":{"resourceVersion":%q},"spec":{"renewTime":%q}}`, lease.ResourceVersion,
			at.Format(metav1.RFC3339Micro))
		lease, err = leases.Patch(context.Background(), "x", types.MergePatchType, body,
			metav1.PatchOptions{FieldManager: "m"})
		if err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAcquire(b *testing.B) {
	leases := leasetest.NewServer().Client("a").Leases("default")
	for i := int32(0); b.Loop(); i++ {
		at := metav1.NowMicro()
		_, err := leases.Apply(context.Background(),
			coordinationv1apply.Lease("x", "default").WithSpec(coordinationv1apply.LeaseSpec().
				WithHolderIdentity("a").WithLeaseDurationSeconds(15).WithAcquireTime(at).
				WithRenewTime(at).WithLeaseTransitions(i)),
			metav1.ApplyOptions{FieldManager: "m", Force: true})
		if err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUpdate(b *testing.B) {
	leases := leasetest.NewServer().Client("a").Leases("default")
	lease, err := leases.Create(context.Background(), &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "x"}},
		metav1.CreateOptions{})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		lease.Spec.RenewTime = &metav1.MicroTime{Time: time.Now()}
		if lease, err = leases.Update(context.Background(), lease, metav1.UpdateOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkApplyLabels measures an apply that package managedfields decides.
func BenchmarkApplyLabels(b *testing.B) {
	leases := leasetest.NewServer().Client("a").Leases("default")
	for i := int32(0); b.Loop(); i++ {
		_, err := leases.Apply(context.Background(),
			coordinationv1apply.Lease("x", "default").WithLabels(map[string]string{"a": "b"}).
				WithSpec(coordinationv1apply.LeaseSpec().WithLeaseTransitions(i)),
			metav1.ApplyOptions{FieldManager: "m", Force: true})
		if err != nil {
			b.Fatal(err)
		}
	}
}
