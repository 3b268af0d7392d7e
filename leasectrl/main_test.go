package leasectrl_test

import (
	"testing"

	"github.com/go-logr/logr"
	"go.uber.org/goleak"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

func TestMain(m *testing.M) {
	log.SetLogger(logr.Discard())
	utilruntime.ErrorHandlers = nil // one of them sleeps until after the last error, also into another bubble's time
	goleak.VerifyTestMain(m)
}
