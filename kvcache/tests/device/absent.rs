//! Where there is no GPU, or none that could do it.

use kvist::kernels::cuda::Error as GpuError;
use kvist::{AttendOptions, Cache, DType, DeviceOptions, Error, Geometry};

use crate::pair::{Pair, geometry};

fn refused(geometry: Geometry) -> String {
    let cache = Cache::builder(geometry).device(DeviceOptions::default().optional(true));
    cache.build().unwrap_err().to_string()
}

/// Refused even where the GPU is optional.
pub(crate) fn geometries() {
    let g = Geometry::new(1, 4, 2, 64, DType::Bf16);
    let text = refused(Geometry { dim_v: 32, ..g.clone() });
    assert_eq!(text, "device: dim_k and dim_v must be equal, found 64 and 32");
    let text = refused(Geometry { dim_k: 48, dim_v: 48, ..g.clone() });
    assert!(text.contains("dim on the device") && text.contains("found 48"), "{text}");
    let none = Cache::builder(g).device(DeviceOptions::default().ordinal(9)).build();
    let Err(Error::Gpu(GpuError::NoDevice { ordinal: 9, devices: 2 })) = none else {
        panic!("{none:?}")
    };
}

/// In a process without a driver.
pub(crate) fn no_driver() {
    let builder = || Cache::builder(geometry()).threads(1);
    let text = builder().device(DeviceOptions::default()).build().unwrap_err().to_string();
    assert!(text.contains("no NVIDIA driver") && text.contains("install"), "{text}");
    let gpu = builder().device(DeviceOptions::default().optional(true));
    let mut pair = Pair::new(gpu, builder(), 2);
    pair.append(0, 30);
    pair.attend(0, 1, &AttendOptions::default());
    let done = pair.gpu.device().unwrap();
    let cause = done.degraded.unwrap().cause;
    assert!(matches!(cause, GpuError::NoDriver { .. }), "{cause}");
    assert_eq!((done.calls, done.calls_on_cpu, done.name.as_str()), (0, 2, ""));
}
