package leasetest_test

import (
	"fmt"
	"strconv"
	"sync"
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-go/leasehold/leasetest"
)

func TestHandsBypassAllConditions(t *testing.T) {
	srv := leasetest.NewServer()
	var changes []string
	srv.OnCommit(func(c leasetest.Change) { changes = append(changes, string(c.Type)+" by "+c.Client) })

	if srv.Edit(ns, name, func(*coordinationv1.Lease) { t.Error("called for a missing lease") }) != nil ||
		srv.Delete(ns, name) || srv.Lease(ns, name) != nil {
		t.Error("a missing lease was found")
	}
	first := srv.Put(lease("a"))
	zero := int32(0)
	second := srv.Edit(ns, name, func(l *coordinationv1.Lease) {
		l.Spec.LeaseDurationSeconds = &zero
		l.Finalizers = []string{"x"}
	})
	if first.UID != second.UID || first.ResourceVersion == second.ResourceVersion ||
		*srv.Lease(ns, name).Spec.LeaseDurationSeconds != 0 {
		t.Errorf("got %v after %v", second, first)
	}
	if err := take(t.Context(), srv.Client("b").Leases(ns), "b"); err == nil {
		t.Error("a client's write passed although the lease is invalid")
	}
	if !srv.Delete(ns, name) {
		t.Error("not deleted")
	}
	if got, want := fmt.Sprint(changes), "[ADDED by  MODIFIED by  DELETED by ]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestWhatIsReturnedIsTheCallers(t *testing.T) {
	srv := leasetest.NewServer()
	mine := lease("a")
	stored := srv.Put(mine)
	*mine.Spec.HolderIdentity, *stored.Spec.HolderIdentity, *srv.Lease(ns, name).Spec.HolderIdentity = "x", "y", "z"
	if got := holder(srv); got != "a" {
		t.Errorf("got %s, want a", got)
	}
	again, err := srv.Client("a").Leases(ns).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	*again.Spec.HolderIdentity = "x"
	if got := holder(srv); got != "a" {
		t.Errorf("got %s, want a", got)
	}
}

func TestOneOfManyWinsEachResourceVersion(t *testing.T) {
	srv := leasetest.NewServer()
	first := srv.Put(lease("nobody"))
	var last uint64
	srv.OnCommit(func(c leasetest.Change) {
		rv, err := strconv.ParseUint(c.New.ResourceVersion, 10, 64)
		if err != nil || rv <= last {
			t.Errorf("resourceVersion %s after %d", c.New.ResourceVersion, last)
		}
		last = rv
	})
	const candidates = 50
	var won sync.Map
	var wg sync.WaitGroup
	for i := range candidates {
		wg.Go(func() {
			l := first.DeepCopy()
			*l.Spec.HolderIdentity = strconv.Itoa(i)
			if _, err := srv.Client(strconv.Itoa(i)).Leases(ns).Update(t.Context(), l,
				metav1.UpdateOptions{}); err == nil {
				won.Store(i, true)
			}
		})
	}
	wg.Wait()
	n := 0
	won.Range(func(any, any) bool { n++; return true })
	if n != 1 {
		t.Errorf("%d candidates won, want 1", n)
	}
}
