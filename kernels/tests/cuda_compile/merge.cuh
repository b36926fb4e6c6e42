// Parameters of merge.cu: one struct, by value.
struct MergeParams {
    const float* parts;  // [n, rows, KV_D]
    const float* lse2;   // [n, rows]
    float* out;          // [rows, KV_D]
    float* out_lse2;     // [rows]
    int n;
    int rows;
};
