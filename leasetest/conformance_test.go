package leasetest_test

import (
	"testing"
	"testing/synctest"

	"github.com/leasehold-go/leasehold/leasetest"
	"github.com/leasehold-go/leasehold/leasetest/conformance"
)

func TestConformance(t *testing.T) {
	for _, c := range conformance.Cases() {
		t.Run(c.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c.Test(t, leasetest.NewServer().Client("client"), "default")
			})
		})
	}
}
